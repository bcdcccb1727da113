"""Gates on the compiler's own report about the CUDA kernels: no spills, no stack, no warnings; at
most the registers and shared memory, and exactly the instructions, of kernel_gates.txt. No GPU."""

from __future__ import annotations

import dataclasses

import minference_ext
import pytest

from tests.kernel_report import (
    COUNTS,
    REGISTERS,
    SHARED_LIMIT,
    SHARED_RESERVED,
    TABLE,
    Gate,
    Kernel,
    Resources,
    Source,
    count_instructions,
    demangle,
    format_rows,
    format_table,
    gates_of,
    parse_log,
    read_build,
    read_table,
    unpack_lz4,
)

BUILD_MINUTES = 15  # of the whole CUDA build, on two cores

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
    return found


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
            f"{where}: {count} {column} in the PTX, {gate.counts[column]} expected"
            for column, count in kernel.counts.items()
            if count != gate.counts[column]
        ]
    return sorted(found)


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
    found = read_build()
    request.config.pluginmanager.register(Summary(found, table[1]))
    return found


def test_every_source_has_kernels_of_one_set_of_architectures(sources: list[Source]) -> None:
    architectures = {
        source.path: sorted({kernel.architecture for kernel in source.kernels})
        for source in sources
        if source.kernels
    }
    assert len(set(map(tuple, architectures.values()))) == 1, architectures


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
    assert sum(source.seconds for source in sources) / 2 <= 60 * BUILD_MINUTES


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
KERNEL = Kernel("scan<float>", "80", Resources(22, 1184, 0, 0), {"mma": 1})
GATE = Gate(24, 1184, 1000, {"mma": 1})


def source_of(kernel: Kernel, *complaints: str) -> Source:
    return Source("a.cu", 1.0, [kernel], list(complaints), "9.0")


def test_log_is_read() -> None:
    resources, complaints, seconds = parse_log(LOG)
    assert resources == {
        ("_Z4scanIfEvPf", "80"): Resources(22, 1184, 0, 0),
        ("_Z4scanIfEvPf", "90a"): Resources(40, 0, 8, 28),
    }
    assert (complaints, seconds) == ([], 5.75)


@pytest.mark.parametrize(
    "line",
    [
        "ptxas info    : (C7510) Potential Performance Loss: wgmma instructions are serialized",
        "ptxas warning : Registers are spilled to local memory in function '_Z4scanIfEvPf'",
        "ptxas info    : setmaxnreg ignored to maintain minimum register requirements.",
        "a.cu(3): warning #177-D: variable was declared but never referenced",
    ],
)
def test_everything_else_in_a_log_is_a_complaint(line: str) -> None:
    assert parse_log(f"{LOG}{line}\n")[1] == [line]


def test_ptx_is_counted() -> None:
    launch = {"threads": 128, "blocks": 2}
    counts = {"mma": 1, "ldmatrix": 0, "cp.async": 1, "barrier": 2, "atomic": 1}
    assert count_instructions(PTX) == {
        ("_Z4scanIfEvPf", "80"): launch | counts,
        ("_Z4nonev", "80"): dict.fromkeys(launch | counts, 0),
    }


def test_lz4_copies_overlap() -> None:
    packed = b"\x32abc\x03\x00" + b"\x1fx\x01\x00\x05" + b"\x10y"
    assert unpack_lz4(packed, 34) == b"abcabcabc" + b"x" * 25


def test_names_are_short() -> None:
    mangled = [
        "_ZN10minference4cuda39_GLOBAL__N__4dc8e91d_7_scan_cu_fac02efa4scanENS0_10ScanParamsE",
        "_ZN10minference4cuda11scan_kernelIfLb1ELi64EEEvPKT_PS2_",
    ]
    assert demangle(mangled) == ["scan", "scan_kernel<float,true,64>"]


def test_table_is_read_as_written() -> None:
    gates = {("scan<float>", "80"): Gate(24, 1184, 7, dict.fromkeys(COUNTS, 3))}
    assert read_table("# words\n" + format_table("9.0", gates)) == ("9.0", gates)


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (dataclasses.replace(KERNEL, resources=Resources(25, 1184, 0, 0)), "25 registers"),
        (dataclasses.replace(KERNEL, resources=Resources(22, 1185, 0, 0)), "1185 bytes shared"),
        (dataclasses.replace(KERNEL, counts={"mma": 2}), "2 mma in the PTX, 1 expected"),
        (dataclasses.replace(KERNEL, name="sort"), "sort, sm_80: not in the table"),
        (dataclasses.replace(KERNEL, name="sort"), "scan<float>, sm_80: in the table only"),
    ],
)
def test_gates_fail(kernel: Kernel, complaint: str) -> None:
    key = (KERNEL.name, KERNEL.architecture)
    assert gate_complaints([source_of(KERNEL)], {key: GATE, ("scan<float>", "90a"): GATE}) == []
    assert complaint in "\n".join(gate_complaints([source_of(kernel)], {key: GATE}))


def test_shared_memory_of_a_launch_counts() -> None:
    gate = dataclasses.replace(GATE, dynamic=SHARED_LIMIT["80"])
    [complaint] = gate_complaints([source_of(KERNEL)], {("scan<float>", "80"): gate})
    assert "a block has 166912" in complaint


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
    kernel = dataclasses.replace(KERNEL, resources=Resources(registers, 0, 0, 0), counts=counts)
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
