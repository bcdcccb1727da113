"""What the compiler says of the CUDA kernels of this build: registers, shared memory and spills out
of ptxas's logs, instructions out of the PTX in the objects. Needs no GPU and compiles nothing.

    python -m tests.kernel_report [build folder] > gates && mv gates tests/kernel_gates.txt

CMake says which object is whose, cuda/keep_log.sh leaves a log beside every object. The PTX is that
of the fat binaries, whose layout NVIDIA does not document; ptxsim reads it the same way.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "kernel_gates.txt"
BUILD = ROOT / "build" / str(sys.implementation.cache_tag)

# Accesses of memory without a word on which memory it is.
GENERIC = r"(ld|st|atom|red)\.(?!\S*(shared|global|param|const|local))"
# Columns of the table that count instructions of the PTX.
INSTRUCTIONS = {
    "mma": r"mma\.sync",
    "wgmma": r"wgmma\.mma_async",
    "ldmatrix": r"ldmatrix",
    "cp.async": r"cp\.async\.c[ag]\b",
    "tma.ld": r"cp\.async\.bulk\.tensor\.\dd\.shared::cluster\.global",
    "tma.st": r"cp\.async\.bulk\.tensor\.\dd\.global\.shared::cta",
    "barrier": r"(bar|barrier)\.(cta\.)?(sync|red|arrive)",
    "wait": r"mbarrier\.(try|test)_wait",
    "pdl": r"griddepcontrol",
    "atomic": r"(atom|red)\.",
    "generic": GENERIC,
}
# And those that say for which launch it was compiled: threads of a block, and blocks that are to
# fit into a multiprocessor; registers that threads keep and get; 0 where the source does not say.
NUMBERS = {
    "threads": r"\.maxntid (\d+)",
    "blocks": r"\.minnctapersm (\d+)",
    "dec": r"setmaxnreg\.dec\.\S+ (\d+)",
    "inc": r"setmaxnreg\.inc\.\S+ (\d+)",
}
# What is not for threads that get registers: to read global memory, to look for any, to call.
NOT_FOR_MATH = rf"({GENERIC}|ld\.\S*global|call\b)"
SHARED_LIMIT = {"80": 166912, "90a": 232448}  # bytes that one block may have
SHARED_RESERVED = 1024  # bytes per block; a multiprocessor has those of the limit and these
REGISTERS = 65536  # of a multiprocessor


@dataclass(frozen=True)
class Resources:
    """What ptxas says of a kernel."""

    registers: int
    shared: int  # bytes, without what a launch adds
    stack: int  # bytes
    spilled: int  # bytes stored and loaded


@dataclass(frozen=True)
class Code:
    """What a kernel's PTX consists of; nothing is known without PTX."""

    counts: dict[str, int] = field(default_factory=dict)  # by column
    # Of wgmma: where the first operand is, shape and types.
    products: dict[str, int] = field(default_factory=dict)
    setmaxnreg: list[str] = field(default_factory=list)  # dec and inc, each time
    misplaced: list[str] = field(default_factory=list)  # NOT_FOR_MATH, and there


@dataclass(frozen=True)
class Kernel:
    name: str  # demangled, without namespaces and arguments
    architecture: str
    resources: Resources
    code: Code


@dataclass(frozen=True)
class Source:
    """One .cu."""

    path: str
    seconds: float  # of CPU
    kernels: list[Kernel]
    complaints: list[str]  # whatever the compiler said that is no report
    ptx_version: str  # one per release of nvcc: 9.0 is CUDA 13.0


DTYPES = ("fp32", "bf16", "fp16", "e4m3")  # by the value of DType


def demangle(names: list[str]) -> list[str]:
    """`scan<float, 64>` for `void minference::cuda::(anonymous namespace)::scan<...>(Params)`."""
    told = subprocess.run(
        ["c++filt", "--no-params", *names], capture_output=True, text=True, check=True
    ).stdout
    # A template's name has its return type.
    text = re.sub(r"^void |minference::cuda::|\(anonymous namespace\)::", "", told, flags=re.M)
    text = re.sub(r"(?:\w+::)?\w+Config<([^<>]*)>", r"\1", text)
    text = re.sub(r"\(minference::DType\)(\d)", lambda match: DTYPES[int(match[1])], text)
    return [re.sub(r"\((?:bool|int|\w+::\w+)\)|\(.*\)$|\s", "", line) for line in text.splitlines()]


def parse_log(log: str) -> tuple[dict[tuple[str, str], Resources], list[str], float]:
    """Resources by mangled name and architecture, complaints, seconds of CPU."""
    resources: dict[tuple[str, str], Resources] = {}
    complaints = []
    seconds = 0.0
    entry = ("", "")
    stack = spilled = 0
    for line in log.splitlines():
        if match := re.match(
            r"ptxas info +: Compiling entry function '(\w+)' for 'sm_(\w+)'", line
        ):
            entry = (match[1], match[2])
            stack = spilled = 0
        elif match := re.match(
            r" +(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads$", line
        ):
            # Of the kernel or of a function that it calls.
            stack += int(match[1])
            spilled += int(match[2]) + int(match[3])
        elif match := re.match(r"ptxas info +: Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            resources[entry] = Resources(
                int(match[1]), int(shared[1]) if shared else 0, stack, spilled
            )
        elif match := re.match(r"seconds (\S+) (\S+)$", line):
            seconds = float(match[1]) + float(match[2])
        elif line and not re.match(
            r"ptxas info +: (Function properties for \w+|Compile time = .*|\d+ bytes gmem.*)$", line
        ):
            complaints.append(line)
    return resources, complaints, seconds


def unpack_lz4(packed: bytes, size: int) -> bytes:
    """The block format: literals, then a copy of what was written `offset` bytes before."""
    out = bytearray()
    at = 0

    def length(nibble: int) -> int:
        nonlocal at
        total = nibble
        while nibble == 15:
            total += packed[at]
            at += 1
            if packed[at - 1] != 255:
                break
        return total

    while len(out) < size:
        token = packed[at]
        at += 1
        literals = length(token >> 4)
        out += packed[at : at + literals]
        at += literals
        if len(out) >= size:
            break
        offset = packed[at] | packed[at + 1] << 8
        at += 2
        copied = length(token & 15) + 4
        begin = len(out) - offset
        while copied > 0:  # the copy may overlap what it writes
            piece = out[begin : begin + copied]
            out += piece
            copied -= len(piece)
    return bytes(out[:size])


def ptx_images(binary: bytes) -> Iterator[str]:
    """The PTX texts of all fat binaries in an object file."""
    at = -1
    while (at := binary.find(b"\x50\xed\x55\xba\x01\x00\x10\x00", at + 1)) >= 0:
        (size,) = struct.unpack_from("<Q", binary, at + 8)
        entry, end = at + 16, at + 16 + size
        while entry < end:
            kind, header, stored, packed_size = struct.unpack_from("<HxxIQI", binary, entry)
            flags, _, plain_size = struct.unpack_from("<QQQ", binary, entry + 40)
            text = binary[entry + header : entry + header + stored]
            if kind == 1:
                if flags & 0x2000:
                    text = unpack_lz4(text[:packed_size], plain_size)
                elif plain_size:
                    raise AssertionError("PTX that is not packed by --compress-mode=speed")
                yield text.rstrip(b"\0").decode()
            entry += header + stored


def instructions(pattern: str, text: str) -> list[re.Match[str]]:
    """Where a line is an instruction like this, predicated or not."""
    return list(re.finditer(rf"^[{{\s]*(?:@!?%?\w+ )?(?:{pattern})", text, re.MULTILINE))


def reached_from(pattern: str, text: str) -> str:
    """The lines that a thread may come to after an instruction like this."""
    lines = [line.strip() for line in text.splitlines()]
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
    todo = [at for at, line in enumerate(lines) if re.match(pattern, line)]
    reached: set[int] = set()
    while todo:
        at = todo.pop()
        while at < len(lines) and at not in reached:
            reached.add(at)
            assert "brx" not in lines[at], "a jump to one of many places"
            # Labels of assembly in the source are local to it: it is gone through anyway.
            jump = re.match(r"(@\S+ )?bra(?:\.uni)? (\$\w+);", lines[at])
            if jump:
                todo.append(labels[jump[2]])
            if lines[at] == "ret;" or (jump and not jump[1]):
                break
            at += 1
    return "\n".join(lines[at] for at in sorted(reached))


def read_products(text: str) -> dict[str, int]:
    """`shared m64n128k16.f32.bf16.bf16` by how often it is there."""
    # Results, then the first operand: registers in braces, or a descriptor.
    pattern = r"wgmma\.mma_async\.\S*?(?P<shape>m64\S+) +\{[^}]*\}, *(?P<first>\{?)"
    found = [
        f"{'registers' if product['first'] else 'shared'} {product['shape']}"
        for product in instructions(pattern, text)
    ]
    return {name: found.count(name) for name in sorted(set(found))}


def read_ptx(ptx: str) -> dict[tuple[str, str], Code]:
    """Kernels by mangled name and architecture."""
    target = re.search(r"^\.target sm_(\w+)", ptx, re.MULTILINE)
    assert target is not None
    # Up to the next function or the debug information. Braces do not tell: assembly may have some.
    parts = re.split(r"^(?=(?:\.\w+ )?\.(?:entry|func|section)\b)", ptx, flags=re.MULTILINE)
    kernels = {}
    for part in parts:
        if entry := re.match(r"(?:\.\w+ )?\.entry (\w+)\(", part):
            numbers = {
                column: int(found[1]) if (found := re.search(f"^{pattern}", part, re.M)) else 0
                for column, pattern in NUMBERS.items()
            }
            counts = {
                column: len(instructions(pattern, part)) for column, pattern in INSTRUCTIONS.items()
            }
            products = read_products(part)
            assert sum(products.values()) == counts["wgmma"], "wgmma of an unknown form"
            math = reached_from(r"setmaxnreg\.inc", part)
            kernels[entry[1], target[1]] = Code(
                numbers | counts,
                products,
                [match["way"] for match in instructions(r"setmaxnreg\.(?P<way>\w+)", part)],
                [match[0].split()[-1] for match in instructions(rf"{NOT_FOR_MATH}\S*", math)],
            )
    return kernels


def read_source(path: Path, compiled: Path) -> Source:
    log = Path(f"{compiled}.log").read_text(encoding="utf-8")
    resources, complaints, seconds = parse_log(log)
    codes: dict[tuple[str, str], Code] = {}
    ptx_version = ""
    for ptx in ptx_images(compiled.read_bytes()):
        codes |= read_ptx(ptx)
        version = re.search(r"^\.version (\S+)", ptx, re.MULTILINE)
        ptx_version = version[1] if version else ""
    names = dict(zip(resources, demangle([name for name, _ in resources]), strict=True))
    kernels = [
        # Without PTX of this architecture, as "90a-real" asks, there is nothing to count.
        Kernel(names[key], key[1], resources[key], codes.get(key, Code()))
        for key in resources
    ]
    return Source(path.relative_to(ROOT).as_posix(), seconds, kernels, complaints, ptx_version)


def kernel_files() -> list[Path]:
    return sorted((ROOT / "cuda").rglob("*.cu"))


def find_objects(build: Path) -> dict[Path, Path]:
    """Objects by source, of every target, as CMake last configured the build: left-overs are not
    among them."""
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return {
        Path(command["file"]).resolve(): Path(command["directory"]) / command["output"]
        for command in commands
    }


def read_build(build: Path) -> list[Source]:
    objects = find_objects(build)
    return [read_source(path, objects[path]) for path in kernel_files() if path in objects]


# ---- The table ----------------------------------------------------------------------------------

HEAD = """\
# What every CUDA kernel may use and consists of. test_resources.py compares; written by
# kernel_report.py.
#
#   registers  at most, rounded up to what the hardware hands out
#   shared     bytes in the kernel's text, at most
#   dynamic    most bytes that a launch adds: kept by hand; shared + dynamic has to fit into a block
#   threads    of a block at most, and
#   blocks     that registers and shared memory of a multiprocessor have to do for; 0: not said
#   dec, inc   registers that setmaxnreg leaves to threads that load, and gives to those that
#              multiply; 0: it is not used
#   others     instructions in the PTX, exactly, by what nvcc of this PTX version makes:
#              tma.ld, tma.st    copies of boxes of a tensor to and from shared memory
#              wait              for an mbarrier
#              pdl               griddepcontrol: overlaps with the kernels before and after
#              generic           accesses of memory that the compiler does not know the kind of
#
# Spills, stack and whatever else the compiler complains of: none. Kernels of cuda/sm90 are held to
# more, whatever the numbers: sm90_complaints.
"""
COUNTS = [*NUMBERS, *INSTRUCTIONS]
COLUMNS = ["arch", "registers", "shared", "dynamic", *COUNTS]


@dataclass(frozen=True)
class Gate:
    """A row of the table."""

    registers: int
    shared: int
    dynamic: int
    counts: dict[str, int]


def read_table(text: str) -> tuple[str, dict[tuple[str, str], Gate]]:
    """Version of the PTX, and rows by kernel and architecture."""
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    version, header, *rest = rows
    fixed = ["kernel", "arch", "registers", "shared", "dynamic"]
    assert header[: len(fixed)] == fixed
    table = {}
    for name, architecture, *numbers in rest:
        registers, shared, dynamic, *counts = map(int, numbers)
        counted = dict(zip(header[len(fixed) :], counts, strict=True))
        table[name, architecture] = Gate(registers, shared, dynamic, counted)
    assert len(table) == len(rest), "a kernel stands in the table twice"
    return version[-1], table


def format_rows(rows: list[list[str]]) -> str:
    """Columns, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(
            word.ljust(width) if i == 0 else word.rjust(width)
            for i, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


def format_table(ptx_version: str, gates: dict[tuple[str, str], Gate]) -> str:
    rows = [["kernel", *COLUMNS]]
    for (name, architecture), gate in sorted(gates.items()):
        numbers = [gate.registers, gate.shared, gate.dynamic, *gate.counts.values()]
        rows.append([name, architecture, *map(str, numbers)])
    return f"ptx {ptx_version}\n{format_rows(rows)}"


def gates_of(
    sources: list[Source], known: dict[tuple[str, str], Gate]
) -> dict[tuple[str, str], Gate]:
    """The table that this build just passes."""
    gates = {}
    for kernel in (kernel for source in sources for kernel in source.kernels):
        key = (kernel.name, kernel.architecture)
        same = [gate.dynamic for (name, _), gate in known.items() if name == kernel.name]
        dynamic = max(same, default=0)
        used = kernel.resources
        gates[key] = Gate(
            min(-(-used.registers // 8) * 8, 255), used.shared, dynamic, kernel.code.counts
        )
    return gates


def main() -> None:
    known = read_table(TABLE.read_text(encoding="utf-8"))[1] if TABLE.exists() else {}
    sources = read_build(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILD)
    print(HEAD + format_table(sources[0].ptx_version, gates_of(sources, known)), end="")


if __name__ == "__main__":
    main()
