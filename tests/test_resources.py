"""Gates on the compiler's own report about the CUDA kernels: no spills, no stack, no warnings; at
most the registers and shared memory, and exactly the instructions, of kernel_gates.txt; of the
kernels for Hopper all registers, and the products their head dimension asks for. No GPU."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import minference_ext
import pytest

from tests.kernel_report import (
    BUILD,
    COUNTS,
    REGISTERS,
    ROOT,
    SHARED_LIMIT,
    SHARED_RESERVED,
    TABLE,
    Code,
    Gate,
    Kernel,
    Resources,
    Source,
    demangle,
    find_objects,
    format_rows,
    format_table,
    gates_of,
    kernel_files,
    parse_log,
    read_build,
    read_ptx,
    read_table,
    unpack_lz4,
)

BUILD_MINUTES = 15  # of the whole CUDA build, on two cores
WARPGROUP = 128  # threads
SM90 = "cuda/sm90/"  # sources for sm_90a alone

Table = dict[tuple[str, str], Gate]


def hard_complaints(source: Source) -> list[str]:
    """What no kernel may have, whichever compiler made it."""
    found = [f"{source.path}: {line}" for line in source.complaints]
    for kernel in source.kernels:
        used = kernel.resources
        if used.stack or used.spilled:
            found.append(
                f"{kernel.name}, sm_{kernel.architecture}: {used.stack} bytes of stack, "
                f"{used.spilled} bytes spilled"
            )
        if source.path.startswith(SM90):
            found += [f"{kernel.name}: {complaint}" for complaint in sm90_complaints(kernel)]
    return found


def sm90_complaints(kernel: Kernel) -> list[str]:
    """What is wrong with roles, registers and products of a kernel for Hopper."""
    code = kernel.code
    if not code.counts:
        return []
    found = []
    threads, registers = code.counts["threads"], kernel.resources.registers
    fitting = REGISTERS // max(threads, 1) // 8 * 8
    if registers != fitting:
        found.append(f"{registers} registers of {threads} threads, {fitting} fit")
    if sorted(code.setmaxnreg) != ["dec", "inc"]:
        found.append(f"setmaxnreg {', '.join(code.setmaxnreg)}, wanted are one dec and one inc")
    # The first warpgroup lets go of registers that the others wait for.
    dec, inc = code.counts["dec"], code.counts["inc"]
    warpgroups = threads // WARPGROUP
    wanted, held = dec + (warpgroups - 1) * inc, warpgroups * registers
    if wanted > held:
        found.append(f"dec {dec} and inc {inc} come to {wanted} registers, a launch has {held}")
    steps = steps_of_stage(kernel.name)
    if code.products.keys() != steps.keys():
        found.append(f"products {', '.join(code.products)}, wanted are {', '.join(steps)}")
    found += [
        f"{count} of {product}, a stage has {steps[product]}"
        for product, count in code.products.items()
        if product in steps and count % steps[product] != 0
    ]
    if code.misplaced:
        found.append(f"threads that multiply do {', '.join(sorted(set(code.misplaced)))}")
    return found


def steps_of_stage(name: str) -> dict[str, int]:
    """Products of 64 rows and a stage: Q K^T, both in shared memory, and P V, P in registers."""
    match = re.fullmatch(r"sm90::attention_fwd<(bf16|fp16|e4m3),(\d+)>", name)
    if match is None:
        return {}
    dtype, dims = match[1], int(match[2])
    # V is float16 where q and K are float8, of which a product takes twice as many dimensions.
    scores, step = {"bf16": ("bf16", 16), "fp16": ("f16", 16), "e4m3": ("e4m3", 32)}[dtype]
    values = "bf16" if dtype == "bf16" else "f16"
    keys = 128 if dims <= 128 else 64
    return {
        f"shared m64n{keys}k{step}.f32.{scores}.{scores}": dims // step,
        f"registers m64n{dims}k16.f32.{values}.{values}": keys // 16,
    }


def gate_complaints(sources: list[Source], table: Table) -> list[str]:
    """What differs from the table, for the architectures that were built."""
    kernels = {(k.name, k.architecture): k for source in sources for k in source.kernels}
    built = {architecture for _, architecture in kernels}
    found = [f"{name}, sm_{arch}: not in the table" for name, arch in kernels.keys() - table.keys()]
    for (name, architecture), gate in table.items():
        where = f"{name}, sm_{architecture}"
        if architecture not in built:
            continue
        if (name, architecture) not in kernels:
            found.append(f"{where}: in the table only")
            continue
        kernel = kernels[name, architecture]
        used = kernel.resources
        if used.registers > gate.registers:
            found.append(f"{where}: {used.registers} registers, {gate.registers} allowed")
        if used.shared > gate.shared:
            found.append(f"{where}: {used.shared} bytes shared, {gate.shared} allowed")
        total, limit = used.shared + gate.dynamic, SHARED_LIMIT[architecture]
        if total > limit:
            found.append(f"{where}: {total} bytes shared with a launch's, a block has {limit}")
        blocks, threads = gate.counts.get("blocks", 0), gate.counts.get("threads", 0)
        if blocks * threads * used.registers > REGISTERS:
            found.append(
                f"{where}: {blocks} blocks are to fit, {used.registers} registers are many"
            )
        if blocks * (total + SHARED_RESERVED) > limit + SHARED_RESERVED:
            found.append(f"{where}: {blocks} blocks are to fit, {total} bytes shared are many")
        found += [
            f"{where}: {count} {column} in the PTX, {gate.counts.get(column)} expected"
            for column, count in kernel.code.counts.items()
            if count != gate.counts.get(column)
        ]
    return sorted(found)


def architecture_complaints(sources: list[Source], files: list[str]) -> list[str]:
    """Every file is compiled for all architectures of the build, those for Hopper for sm_90a."""
    built = {s.path: {kernel.architecture for kernel in s.kernels} for s in sources}
    everywhere: set[str] = set().union(*built.values())
    found = []
    for path in files:
        wanted = everywhere & {"90a"} if path.startswith(SM90) else everywhere
        if wanted and path not in built:
            found.append(f"{path} is not compiled")
        elif built.get(path) and built[path] != wanted:  # files of host functions have no kernels
            found.append(f"{path}: {sorted(built[path])}, wanted are {sorted(wanted)}")
    return found


def time_rows(sources: list[Source]) -> list[list[str]]:
    slowest_first = sorted(sources, key=lambda source: -source.seconds)
    total = sum(source.seconds for source in sources)
    return [
        ["compiled", "CPU seconds"],
        *([source.path, f"{source.seconds:.1f}"] for source in slowest_first),
        [f"all: on two cores {total / 120:.1f} minutes", f"{total:.1f}"],
    ]


@dataclasses.dataclass
class Summary:
    """Prints at the end of pytest's output, as a plugin."""

    sources: list[Source]
    table: Table

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        version = self.sources[0].ptx_version
        terminalreporter.write_sep("=", "CUDA kernels as compiled")
        terminalreporter.write(format_table(version, gates_of(self.sources, self.table)))
        terminalreporter.write("\n" + format_rows(time_rows(self.sources)))


@pytest.fixture(scope="module")
def table() -> tuple[str, Table]:
    return read_table(TABLE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(request: pytest.FixtureRequest, table: tuple[str, Table]) -> list[Source]:
    if not minference_ext.has_cuda():
        pytest.skip("this build has no CUDA kernels (make build CUDA=ON): no gate was checked")
    found = read_build(BUILD)
    request.config.pluginmanager.register(Summary(found, table[1]))
    return found


def test_every_source_is_compiled_for_its_architectures(sources: list[Source]) -> None:
    files = [path.relative_to(ROOT).as_posix() for path in kernel_files()]
    complaints = architecture_complaints(sources, files)
    assert not complaints, "\n".join(complaints)


def test_nothing_spills_and_nothing_is_warned_of(sources: list[Source]) -> None:
    complaints = [complaint for source in sources for complaint in hard_complaints(source)]
    assert not complaints, "\n".join(complaints)


def test_resources_are_those_of_the_table(sources: list[Source], table: tuple[str, Table]) -> None:
    version, gates = table
    built = {source.ptx_version for source in sources if source.kernels}
    if built != {version}:
        pytest.skip(f"{TABLE.name} is about PTX {version}; this build's is {', '.join(built)}")
    complaints = gate_complaints(sources, gates)
    assert not complaints, "\n".join([*complaints, f"if this was meant: see {TABLE.name}"])


def test_build_time(sources: list[Source]) -> None:
    """Counted in seconds of CPU, when each source was last compiled; ccache makes it less."""
    minutes = sum(source.seconds for source in sources) / 120
    assert minutes <= BUILD_MINUTES, format_rows(time_rows(sources))


# ---- Every gate can fail ------------------------------------------------------------------------

LOG = """\
ptxas info    : 28 bytes gmem, 224 bytes cmem[4]
ptxas info    : Compiling entry function '_Z4scanIfEvPf' for 'sm_80'
ptxas info    : Function properties for _Z4scanIfEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 1 barriers, 1184 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 4.912 ms
ptxas info    : Compiling entry function '_Z4scanIfEvPf' for 'sm_90a'
ptxas info    : Function properties for _Z4scanIfEvPf
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
seconds 5.500 0.250
"""
PTX = """\
.version 9.0
.target sm_80
.visible .entry _Z4scanIfEvPf(
.param .u64 _Z4scanIfEvPf_param_0
)
.maxntid 128, 1, 1
.minnctapersm 2
{
 @%p1 cp.async.cg.shared.global [%r1], [%rd1], 16;
{
}
 cp.async.commit_group;
 mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2}, {%r1}, {%r2}, {%f1, %f2};
 bar.sync 0;
 bar.red.or.pred %p2, 0, %p1;
 red.shared.add.u32 [%r1], 1;
}
.entry _Z4nonev()
{
ret;
}
"""
SM90_PTX = """\
.version 9.0
.target sm_90a
.visible .entry _Z4attnv()
.maxntid 384, 1, 1
.minnctapersm 1
{
griddepcontrol.wait;
@%p1 bra $L__BB0_3;
setmaxnreg.dec.sync.aligned.u32 56;
$L__BB0_1:
ld.u32 %r1, [%rd1];
@%p2 st.v2.u32 [%rd1], {%r1, %r1};
ld.global.u32 %r1, [%rd1];
@%p3 cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1];
@%p2 bra $L__BB0_1;
bra.uni $L__BB0_5;
$L__BB0_3:
setmaxnreg.inc.sync.aligned.u32 224;
{
.reg .pred is_over;
again:
mbarrier.try_wait.parity.shared::cta.b64 is_over, [%r1], %r2, 10000000;
@!is_over bra again;
}
bar.arrive %r1, %r2;
@%p4 bra $L__BB0_6;
bra.uni $L__BB0_7;
$L__BB0_5:
ret;
$L__BB0_6:
{
.reg .pred p;
setp.ne.b32 p, %r1, 0;
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1, %f2}, %rd1, %rd2, p, 1, 1, 0, 0;
}
{
wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {%f1, %f2},{%r1, %r2}, %rd2, p, 1, 1, 1;
}
wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {%f1, %f2}, {%r1, %r2}, %rd2, p, 1, 1, 1;
$L__BB0_7:
MATH
st.shared.u32 [%r1], %r2;
st.global.v2.f32 [%rd1], {%f1, %f2};
ld.param.u64 %rd1, [_Z4attnv_param_0];
cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%rd1], [%r1];
bra.uni $L__BB0_5;
}
"""
KERNEL = Kernel("scan<float>", "80", Resources(22, 1184, 0, 0), Code({"mma": 1}))
GATE = Gate(24, 1184, 1000, {"mma": 1})
SM90_CODE = Code(
    {"threads": 384, "dec": 56, "inc": 224},
    {"shared m64n128k16.f32.f16.f16": 12, "registers m64n96k16.f32.f16.f16": 16},
    ["dec", "inc"],
)
SM90_KERNEL = Kernel("sm90::attention_fwd<fp16,96>", "90a", Resources(168, 0, 0, 0), SM90_CODE)


def source_of(kernel: Kernel, *complaints: str) -> Source:
    return Source("a.cu", 1.0, [kernel], list(complaints), "9.0")


def sm90_source_of(kernel: Kernel) -> Source:
    return dataclasses.replace(source_of(kernel), path="cuda/sm90/a.cu")


def test_log_is_read() -> None:
    resources, complaints, seconds = parse_log(LOG)
    assert resources == {
        ("_Z4scanIfEvPf", "80"): Resources(22, 1184, 0, 0),
        ("_Z4scanIfEvPf", "90a"): Resources(40, 0, 8, 28),
    }
    assert (complaints, seconds) == ([], 5.75)


LOST = "Potential Performance Loss:"


@pytest.mark.parametrize(
    "line",
    [
        f"ptxas info    : (C7510) {LOST} wgmma.mma_async instructions are serialized due to ...",
        f"ptxas info    : (C7508) {LOST} 'setmaxnreg' ignored; unable to determine register count",
        "ptxas info    : (C7517) warpgroup.wait is injected in around line 94 by compiler to allow",
        "ptxas warning : Registers are spilled to local memory in function '_Z4scanIfEvPf'",
        "ptxas info    : setmaxnreg ignored to maintain minimum register requirements.",
        "a.cu(3): warning #177-D: variable was declared but never referenced",
    ],
)
def test_everything_else_in_a_log_is_a_complaint(line: str) -> None:
    *head, last = LOG.splitlines(keepends=True)
    for log in (f"{LOG}{line}\n", f"{line}\n{LOG}", "".join([*head, f"{line}\n", last])):
        complaints = parse_log(log)[1]
        assert hard_complaints(source_of(KERNEL, *complaints)) == [f"a.cu: {line}"]


def test_ptx_is_counted() -> None:
    zeros = dict.fromkeys(COUNTS, 0)
    counts = {"threads": 128, "blocks": 2, "mma": 1, "cp.async": 1, "barrier": 2, "atomic": 1}
    assert read_ptx(PTX) == {
        ("_Z4scanIfEvPf", "80"): Code(zeros | counts),
        ("_Z4nonev", "80"): Code(zeros),
    }


@pytest.mark.parametrize(
    ("line", "misplaced"),
    [
        ("ld.shared.u32 %r1, [%r2];", []),
        ("@%p1 ld.u32 %r1, [%rd2];", ["ld.u32"]),
        ("st.relaxed.gpu.v2.u32 [%rd2], {%r1, %r1};", ["st.relaxed.gpu.v2.u32"]),
        ("ld.global.nc.u32 %r1, [%rd2];", ["ld.global.nc.u32"]),
        ("call.uni (retval0), _Z3expf, (param0);", ["call.uni"]),
    ],
)
def test_ptx_of_roles_is_told_apart(line: str, misplaced: list[str]) -> None:
    code = read_ptx(SM90_PTX.replace("MATH", line))["_Z4attnv", "90a"]
    launch = {"threads": 384, "blocks": 1, "dec": 56, "inc": 224}
    counts = {"wgmma": 3, "tma.ld": 1, "tma.st": 1, "barrier": 1, "wait": 1, "pdl": 1}
    generic = len([name for name in misplaced if name[:3] in ("ld.", "st.") and "glo" not in name])
    assert code.counts == dict.fromkeys(COUNTS, 0) | launch | counts | {"generic": 2 + generic}
    products = {"shared m64n64k16.f32.bf16.bf16": 1, "registers m64n96k16.f32.bf16.bf16": 2}
    assert code.products == products
    assert code.setmaxnreg == ["dec", "inc"]
    assert code.misplaced == misplaced


def test_objects_are_those_cmake_builds(tmp_path: Path) -> None:
    (tmp_path / "one.dir").mkdir()
    (tmp_path / "one.dir" / "left_over.cu.o").touch()
    commands = [
        {"directory": str(tmp_path), "file": "/a/x.cu", "output": "one.dir/x.cu.o"},
        {"directory": str(tmp_path), "file": "/b/y.cu", "output": str(tmp_path / "two.dir/y.cu.o")},
    ]
    (tmp_path / "compile_commands.json").write_text(json.dumps(commands), encoding="utf-8")
    assert find_objects(tmp_path) == {
        Path("/a/x.cu"): tmp_path / "one.dir" / "x.cu.o",
        Path("/b/y.cu"): tmp_path / "two.dir" / "y.cu.o",
    }


def test_architectures_are_gated() -> None:
    def source(path: str, *architectures: str) -> Source:
        kernels = [dataclasses.replace(KERNEL, architecture=name) for name in architectures]
        return Source(path, 1.0, kernels, [], "9.0")

    any_, host = source("cuda/any/a.cu", "80", "90a"), source("cuda/any/host.cu")
    hopper = source("cuda/sm90/a.cu", "90a")
    files = [any_.path, host.path, hopper.path]
    assert architecture_complaints([any_, host, hopper], files) == []
    only_80 = source(any_.path, "80")
    assert architecture_complaints([only_80, host], files) == []
    assert architecture_complaints([any_, hopper], files) == ["cuda/any/host.cu is not compiled"]
    assert architecture_complaints([any_, host], files) == ["cuda/sm90/a.cu is not compiled"]
    assert architecture_complaints([any_, host, source("cuda/sm90/a.cu", "80", "90a")], files) == [
        "cuda/sm90/a.cu: ['80', '90a'], wanted are ['90a']"
    ]
    assert architecture_complaints([only_80, host, hopper], files) == [
        "cuda/any/a.cu: ['80'], wanted are ['80', '90a']"
    ]


def test_lz4_copies_overlap() -> None:
    packed = b"\x32abc\x03\x00" + b"\x1fx\x01\x00\x05" + b"\x10y"
    assert unpack_lz4(packed, 34) == b"abcabcabc" + b"x" * 25


def test_names_are_short() -> None:
    mangled = [
        "_ZN10minference4cuda39_GLOBAL__N__4dc8e91d_7_scan_cu_fac02efa4scanENS0_10ScanParamsE",
        "_ZN10minference4cuda11scan_kernelIfLb1ELi64EEEvPKT_PS2_",
        "_ZN10minference4cuda4sm9013attention_fwdINS1_15AttentionConfigILNS_5DTypeE3ELi128EEEEEvPv",
    ]
    short = ["scan", "scan_kernel<float,true,64>", "sm90::attention_fwd<e4m3,128>"]
    assert demangle(mangled) == short


def test_table_is_read_as_written() -> None:
    gates = {("scan<float>", "80"): Gate(24, 1184, 7, dict.fromkeys(COUNTS, 3))}
    assert read_table("# words\n" + format_table("9.0", gates)) == ("9.0", gates)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (dataclasses.replace(KERNEL, resources=Resources(25, 1184, 0, 0)), "25 registers"),
        (dataclasses.replace(KERNEL, resources=Resources(22, 1185, 0, 0)), "1185 bytes shared"),
        (dataclasses.replace(KERNEL, code=Code({"mma": 2})), "2 mma in the PTX, 1 expected"),
        (dataclasses.replace(KERNEL, name="sort"), "sort, sm_80: not in the table"),
        (dataclasses.replace(KERNEL, name="sort"), "scan<float>, sm_80: in the table only"),
    ],
)
def test_gates_fail(kernel: Kernel, complaint: str) -> None:
    key = (KERNEL.name, KERNEL.architecture)
    assert gate_complaints([source_of(KERNEL)], {key: GATE, ("scan<float>", "90a"): GATE}) == []
    assert complaint in "\n".join(gate_complaints([source_of(kernel)], {key: GATE}))


@pytest.mark.parametrize(("architecture", "limit"), [("80", 166912), ("90a", 232448)])
def test_shared_memory_of_a_launch_counts(architecture: str, limit: int) -> None:
    kernel = dataclasses.replace(KERNEL, architecture=architecture)
    fitting = dataclasses.replace(GATE, dynamic=limit - kernel.resources.shared)
    key = ("scan<float>", architecture)
    assert gate_complaints([source_of(kernel)], {key: fitting}) == []
    gate = dataclasses.replace(fitting, dynamic=fitting.dynamic + 1)
    [complaint] = gate_complaints([source_of(kernel)], {key: gate})
    assert f"a block has {limit}" in complaint


@pytest.mark.parametrize(
    ("blocks", "registers", "dynamic", "complaint"),
    [
        (2, 255, 82_000, ""),
        (3, 168, 40_000, ""),
        (3, 176, 40_000, "3 blocks are to fit, 176 registers are many"),
        (2, 255, 83_000, "2 blocks are to fit, 83000 bytes shared are many"),
    ],
)
def test_blocks_fit(blocks: int, registers: int, dynamic: int, complaint: str) -> None:
    counts = {"threads": 128, "blocks": blocks}
    kernel = Kernel("scan<float>", "80", Resources(registers, 0, 0, 0), Code(counts))
    gate = Gate(registers, 0, dynamic, counts)
    found = gate_complaints([source_of(kernel)], {("scan<float>", "80"): gate})
    assert found == ([f"scan<float>, sm_80: {complaint}"] if complaint else [])


def test_hard_gates_fail() -> None:
    assert hard_complaints(source_of(KERNEL)) == []
    spilling = dataclasses.replace(KERNEL, resources=Resources(22, 0, 8, 28))
    assert hard_complaints(source_of(spilling, "warning")) == [
        "a.cu: warning",
        "scan<float>, sm_80: 8 bytes of stack, 28 bytes spilled",
    ]


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (
            dataclasses.replace(SM90_CODE, setmaxnreg=["dec", "inc", "inc"]),
            "setmaxnreg dec, inc, inc, wanted are one dec and one inc",
        ),
        (
            dataclasses.replace(SM90_CODE, counts={"threads": 384, "dec": 40, "inc": 240}),
            "dec 40 and inc 240 come to 520 registers, a launch has 504",
        ),
        (
            dataclasses.replace(SM90_CODE, counts={"threads": 256, "dec": 40, "inc": 240}),
            "168 registers of 256 threads, 256 fit",
        ),
        (
            dataclasses.replace(SM90_CODE, products={"registers m64n8k16.f32.f16.f16": 4}),
            "products registers m64n8k16.f32.f16.f16, wanted are",
        ),
        (
            dataclasses.replace(
                SM90_CODE, products={**SM90_CODE.products, "shared m64n128k16.f32.f16.f16": 13}
            ),
            "13 of shared m64n128k16.f32.f16.f16, a stage has 6",
        ),
        (
            dataclasses.replace(SM90_CODE, misplaced=["ld.u32", "ld.u32"]),
            "threads that multiply do ld.u32",
        ),
    ],
)
def test_gates_of_sm90_fail(code: Code, complaint: str) -> None:
    assert hard_complaints(sm90_source_of(SM90_KERNEL)) == []
    found = hard_complaints(sm90_source_of(dataclasses.replace(SM90_KERNEL, code=code)))
    assert f"{SM90_KERNEL.name}: {complaint}" in "\n".join(found)


def test_kernels_of_sm90_have_all_registers() -> None:
    for registers in (128, 160, 176):
        kernel = dataclasses.replace(SM90_KERNEL, resources=Resources(registers, 0, 0, 0))
        complaint = f"{SM90_KERNEL.name}: {registers} registers of 384 threads, 168 fit"
        assert complaint in hard_complaints(sm90_source_of(kernel))


def test_products_are_those_of_the_head_dimension() -> None:
    assert steps_of_stage("sm90::attention_fwd<bf16,128>") == {
        "shared m64n128k16.f32.bf16.bf16": 8,
        "registers m64n128k16.f32.bf16.bf16": 8,
    }
    assert steps_of_stage("sm90::attention_fwd<fp16,256>") == {
        "shared m64n64k16.f32.f16.f16": 16,
        "registers m64n256k16.f32.f16.f16": 4,
    }
    assert steps_of_stage("sm90::attention_fwd<e4m3,64>") == {
        "shared m64n128k32.f32.e4m3.e4m3": 2,
        "registers m64n64k16.f32.f16.f16": 8,
    }
    assert steps_of_stage("sm80::attention_fwd<true,128>") == {}
