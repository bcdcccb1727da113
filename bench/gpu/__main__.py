"""All that needs a GPU, within one time limit: build, CUDA tests, compute-sanitizer, benchmarks.

    make gpu                              9 minutes at most, on a machine with an NVIDIA GPU
    make gpu ARGS="tests benchmarks"      only these parts
    make gpu ARGS="--results OUT"         JSON below OUT instead of bench/results
    python3 -m bench.gpu --help           needs no package of Python; the benchmarks need torch

What cannot run here is named in the table and the rest goes on. The exit status is 0 if nothing
that ran has failed, also where there is no GPU at all.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from bench.commit import commit

from . import build, machine, report
from .steps import OUT_OF_TIME, Budget, Outcome, Step, run

ROOT = Path(__file__).resolve().parent.parent.parent
# Shares of the time. A part that needs less leaves the rest to those after it.
PARTS = {"build": 150.0, "tests": 110.0, "sanitizers": 120.0, "benchmarks": 150.0}
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Of a test that takes too long under them: words of the cases to run.
SANITIZED_CASES = {"attention_cuda_test": ["every pattern"]}
_RESERVE = 8.0  # seconds, to stop the last step and to write


def _tests_devices(path: Path) -> bool:
    return bool(re.search(r"^def test_.*\bdevice: str", path.read_text(), re.MULTILINE))


def cuda_test_steps(built: build.Built) -> Iterator[Step]:
    names = build.cuda_tests(ROOT)
    if not names:
        yield Step("tests", "C++", [], note="tests/cpp/cuda has no tests")
    for name in names:
        if name in built.programs:
            yield Step("tests", name, [str(built.programs[name])], limit=60)
        else:
            yield Step("tests", name, [], note="not built")
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    # The files that test on every device; importing the others takes long.
    files = [path for path in sorted(ROOT.glob("tests/test_*.py")) if _tests_devices(path)]
    pytest += ["--maxfail=25", *(str(path.relative_to(ROOT)) for path in files)]
    if built.package_lacks:
        yield Step("tests", "pytest -m gpu", [], note=built.package_lacks)
    else:
        yield Step("tests", "pytest -m gpu", pytest, limit=110)


def sanitizer_steps(built: build.Built) -> Iterator[Step]:
    """Every tool on every test program; one tool after the other."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        note = "not found on PATH or in /usr/local/cuda/bin"
        yield Step("sanitizers", "compute-sanitizer", [], note=note)
        return
    for tool in TOOLS:
        # The tests' own switches, named for the emulator they also run on: no guards around
        # buffers, so that the tool sees their ends; no fill of fresh memory.
        environment = {}
        if tool in ("memcheck", "initcheck"):
            environment[f"PTXSIM_{tool.upper()}"] = "1"
        for name in build.cuda_tests(ROOT):
            if name in built.programs:
                command = [sanitizer, "--tool", tool, "--error-exitcode", "99"]
                command += ["--print-limit", "20", str(built.programs[name])]
                command += SANITIZED_CASES.get(name, [])
                yield Step(
                    "sanitizers", f"{tool} {name}", command, limit=45, environment=environment
                )


def benchmark_steps(built: build.Built, is_long: bool) -> Iterator[Step]:
    if build.BENCHMARK in built.programs:
        program = str(built.programs[build.BENCHMARK])
        yield Step("benchmarks", "kernels", [program], limit=90, has_rows=True)
    else:
        yield Step("benchmarks", "kernels", [], note=f"{build.BENCHMARK} is not built")
    command = [sys.executable, "-m", "bench.gpu.attention", "--seconds-left", "{limit}"]
    command += ["--long"] if is_long else []
    yield Step("benchmarks", "torch", command, limit=200, has_rows=True)


class Session:
    """The steps of one call: runs them and keeps what came out."""

    def __init__(self, options: argparse.Namespace, log: IO[str]) -> None:
        self.options = options
        self.outcomes: list[Outcome] = []
        self._log = log
        self._environment = build.environment(ROOT)
        shares = {part: share for part, share in PARTS.items() if part in options.parts}
        self._budget = Budget(options.minutes * 60, shares, _RESERVE)

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            environment = {**self._environment, **step.environment}
            outcome = run(replace(step, environment=environment), self._budget, self._log, ROOT)
            self.outcomes.append(outcome)
            print(
                f"{outcome.part}: {outcome.name}: {outcome.result}, {outcome.seconds:.1f} s"
                + (f"; {outcome.note}" if outcome.note else ""),
                flush=True,
            )

    def prepare(self) -> build.Built:
        """Updates what CMake made here, builds what is missing, takes the rest as it is."""
        built = build.find(ROOT, self.options.folder)
        if "build" not in self.options.parts:
            return built
        if built.package_lacks and not built.missing and not built.is_tree:
            built = self.after(build.module_step(ROOT), built)
        if not (built.missing or built.package_lacks or built.is_tree):
            self.run([Step("build", "everything", [], note="built elsewhere; taken as it is")])
            return built
        built = self.after(build.everything_step(ROOT), built)
        if built.package_lacks:  # not all could be built, the package alone still may be
            built = self.after(build.module_step(ROOT), built)
        return built

    def after(self, step: Step | None, built: build.Built) -> build.Built:
        """What there is after `step`."""
        if step is None:
            return built
        self.run([step])
        return build.find(ROOT, self.options.folder) if step.command else built


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default: 9)")
    parser.add_argument(
        "--folder", type=Path, help="where programs are built (default: any below build)"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench/results", help="default: bench/results"
    )
    parser.add_argument(
        "--long", action="store_true", help="time dense attention of 1M tokens, too: half a minute"
    )
    parser.add_argument("--commit", help="what is measured, where the checkout does not know")
    parser.add_argument(
        "--log", type=Path, default=ROOT / "build/gpu.log", help="default: build/gpu.log"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"PART is {', '.join(sorted(unknown))}; it must be of {', '.join(PARTS)}")
    if not options.minutes > 0:
        parser.error(f"--minutes is {options.minutes}; it must be > 0")
    options.parts = options.parts or list(PARTS)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    gpu, reason = machine.find_gpu()
    if not gpu:
        print(f"no NVIDIA GPU found: {reason}. Nothing was built, tested or measured.")
        return 0
    # Killed from outside it still ends its step and writes what it has.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    where = machine.describe(gpu, options.commit or commit())
    print("  ".join(f"{key}: {value}" for key, value in where.items()), flush=True)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    clocks = machine.Clocks()
    with options.log.open("w") as log:
        session = Session(options, log)
        try:
            built = session.prepare()
            if "tests" in options.parts:
                session.run(cuda_test_steps(built))
            if "sanitizers" in options.parts:
                session.run(sanitizer_steps(built))
            if "benchmarks" in options.parts:
                with machine.sampled_clocks() as clocks:
                    session.run(benchmark_steps(built, options.long))
        except KeyboardInterrupt:
            session.outcomes.append(Outcome("all", "the rest", OUT_OF_TIME, note="interrupted"))
    path = options.results / machine.slug(gpu["device"]) / f"{where['date']}-{where['commit']}.json"
    report.write(path, where, clocks.summary(), session.outcomes)
    bad = [outcome for outcome in session.outcomes if outcome.is_bad]
    print(f"\nwritten: {path}\nall output: {options.log}\n")
    print(report.table(session.outcomes, gpu["device"]))
    print(f"\n{len(bad)} of {len(session.outcomes)} steps failed" if bad else "\nno step failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
