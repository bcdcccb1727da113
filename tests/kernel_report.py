"""What the compiler says of the CUDA kernels of this build: registers, shared memory and spills out
of ptxas's logs, instructions out of the PTX in the objects. Needs no GPU and compiles nothing.

    python -m tests.kernel_report > tests/kernel_gates.txt    # after a change that was meant

cuda/keep_log.sh leaves a log beside every object. The PTX is that of the fat binaries, whose layout
NVIDIA does not document; ptxsim reads it the same way.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "kernel_gates.txt"
OBJECTS = ROOT / "build" / str(sys.implementation.cache_tag) / "CMakeFiles" / "minference_cuda.dir"

# Columns of the table that count instructions of the PTX.
INSTRUCTIONS = {
    "mma": r"mma\.sync",
    "ldmatrix": r"ldmatrix",
    "cp.async": r"cp\.async\.c[ag]\b",
    "barrier": r"(bar|barrier)\.(cta\.)?(sync|red)",
    "atomic": r"(atom|red)\.",
}
# And those that say for which launch it was compiled: threads of a block, and blocks that are to
# fit into a multiprocessor; 0 where the source does not say.
LAUNCH = {"threads": r"\.maxntid (\d+)", "blocks": r"\.minnctapersm (\d+)"}
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
class Kernel:
    name: str  # demangled, without namespaces and arguments
    architecture: str
    resources: Resources
    counts: dict[str, int]  # by column


@dataclass(frozen=True)
class Source:
    """One .cu."""

    path: str
    seconds: float  # of CPU
    kernels: list[Kernel]
    complaints: list[str]  # whatever the compiler said that is no report
    ptx_version: str  # one per release of nvcc: 9.0 is CUDA 13.0


def demangle(names: list[str]) -> list[str]:
    """`scan<float, 64>` for `void minference::cuda::(anonymous namespace)::scan<...>(Params)`."""
    told = subprocess.run(
        ["c++filt", "--no-params", *names], capture_output=True, text=True, check=True
    ).stdout
    # A template's name has its return type.
    text = re.sub(r"^void |minference::cuda::|\(anonymous namespace\)::", "", told, flags=re.M)
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


def count_instructions(ptx: str) -> dict[tuple[str, str], dict[str, int]]:
    """Instructions of each column and what is said of the launch, by mangled name and
    architecture."""
    target = re.search(r"^\.target sm_(\w+)", ptx, re.MULTILINE)
    assert target is not None
    # Up to the next function or the debug information. Braces do not tell: assembly may have some.
    parts = re.split(r"^(?=(?:\.\w+ )?\.(?:entry|func|section)\b)", ptx, flags=re.MULTILINE)
    kernels = {}
    for part in parts:
        if entry := re.match(r"(?:\.\w+ )?\.entry (\w+)\(", part):
            launch = {
                column: int(found[1]) if (found := re.search(f"^{pattern}", part, re.M)) else 0
                for column, pattern in LAUNCH.items()
            }
            kernels[entry[1], target[1]] = launch | {
                column: len(re.findall(rf"^[{{\s]*(?:@!?%\w+ )?{pattern}", part, re.MULTILINE))
                for column, pattern in INSTRUCTIONS.items()
            }
    return kernels


def read_source(path: Path, objects: Path = OBJECTS) -> Source:
    name = path.relative_to(ROOT).as_posix()
    compiled = objects / f"{name}.o"
    log = Path(f"{compiled}.log").read_text(encoding="utf-8")
    resources, complaints, seconds = parse_log(log)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    ptx_version = ""
    for ptx in ptx_images(compiled.read_bytes()):
        counts |= count_instructions(ptx)
        version = re.search(r"^\.version (\S+)", ptx, re.MULTILINE)
        ptx_version = version[1] if version else ""
    names = dict(zip(resources, demangle([name for name, _ in resources]), strict=True))
    kernels = [
        # Without PTX of this architecture, as "90a-real" asks, there is nothing to count.
        Kernel(names[key], key[1], resources[key], counts.get(key, {}))
        for key in resources
    ]
    return Source(name, seconds, kernels, complaints, ptx_version)


def read_build() -> list[Source]:
    return [read_source(path) for path in sorted((ROOT / "cuda").rglob("*.cu"))]


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
#   others     instructions in the PTX, exactly, by what nvcc of this PTX version makes
#
# Spills, stack and whatever else the compiler complains of: none.
"""
COUNTS = [*LAUNCH, *INSTRUCTIONS]
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
    assert header == ["kernel", *COLUMNS]
    table = {}
    for name, architecture, *numbers in rest:
        registers, shared, dynamic, *counts = map(int, numbers)
        counted = dict(zip(COUNTS, counts, strict=True))
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
            min(-(-used.registers // 8) * 8, 255), used.shared, dynamic, kernel.counts
        )
    return gates


def main() -> None:
    known = read_table(TABLE.read_text(encoding="utf-8"))[1] if TABLE.exists() else {}
    sources = read_build()
    print(HEAD + format_table(sources[0].ptx_version, gates_of(sources, known)), end="")


if __name__ == "__main__":
    main()
