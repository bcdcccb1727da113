"""What methods and search keep of a model's answers, and what the search costs.

    python -m bench.accuracy                      every section at 32K
    python -m bench.accuracy --lengths 32768,131072 retrieval mid_prompt
    python -m bench.accuracy --out DIR            records, patterns and a report there

The model is the one of minference_ext.testing, whose answers are known. Every section runs the
program `minference` or its Python API as a user would. Answers are kept in --out as soon as they
are there: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from minference_ext.benchmark.memory import peak_increase
from minference_ext.benchmark.prefill import prefill
from minference_ext.cli import main as minference
from minference_ext.methods import METHODS
from minference_ext.models import LoadedModel
from minference_ext.search import SearchSettings, key_value_prompts, search_patterns
from minference_ext.testing import RetrievalSpec, build_retrieval_model, head_roles

from . import machine
from .__main__ import Rows, print_table

ROOT = Path(__file__).resolve().parent.parent
SEARCH_LENGTH = 32768
# All with their own sizes, but for triangle_mix, whose dense layers would be all there are; then
# sizes that compute a tenth: thousands of diagonals cover most of the prompt, whatever they were
# estimated from. What takes longest is last.
NOT_ALL = ("patterns", "triangle_mix", "top_k")
LONGEST = ("static", "xattention", "infllm")
ALL = ",".join(
    (
        *(method.name for method in METHODS if method.name not in (*NOT_ALL, *LONGEST)),
        "triangle_mix(1)",
        "vertical_slash(1000,200)",
        "vertical_slash_per_chunk(1000,200)",
        "static(1000,200)",
        "only_vertical(1000)",
        "only_slash(200)",
        *LONGEST,
    )
)
ORACLE = "top_k"  # costs several times dense attention
# Nine layers take long; these are the methods with something to show there.
OF_CHAINS = (
    "dense,streaming_llm,vertical_slash,vertical_slash_per_chunk,flexprefill,infllm,xattention"
)
ONE_ESTIMATE = (
    "dense,vertical_slash(1000,200),vertical_slash_per_chunk(1000,200),vertical_slash,"
    "vertical_slash_per_chunk"
)


def _evaluate(task: str, model: str, methods: str, lengths: str, out: Path, *more: str) -> None:
    arguments = [*(task, "--model", model), *("--methods", methods), *("--lengths", lengths)]
    arguments += [*("--samples", "1"), *("--out", str(out)), *more]
    print(f"\n$ minference eval {' '.join(arguments)}", flush=True)
    if minference(["eval", *arguments]) != 0:
        raise SystemExit(1)


# ---- Sections ------------------------------------------------------------------------------------


def retrieval(lengths: str, out: Path) -> None:
    """ten needles by depth, every method: wants dense = vertical_slash = per chunk = 100 %"""
    file = out / "retrieval.json"
    _evaluate("niah", "retrieval", ALL, lengths, file)
    shortest = min(lengths.split(","), key=int)
    _evaluate("niah", "retrieval", ORACLE, shortest, file)


def tracking(lengths: str, out: Path) -> None:
    """chains of eight hops, a model of nine layers: wants dense = vertical_slash = 100 %"""
    shortest = min(lengths.split(","), key=int)
    file = out / "tracking.json"
    _evaluate("variable_tracking", "retrieval:8", OF_CHAINS, shortest, file)


def mid_prompt(lengths: str, out: Path) -> None:
    """needles asked for in the middle: one estimate per prompt fails, one per chunk does not"""
    _evaluate("mid_prompt", "retrieval", ONE_ESTIMATE, lengths, out / "mid_prompt.json")


def search(_lengths: str, out: Path) -> None:
    """patterns found at 32K, and their errors on other prompts beside the original's search"""
    ours, upstream = out / "patterns.json", out / "upstream.json"
    length = str(SEARCH_LENGTH)
    for file, *objective in ((ours,), (upstream, "--objective", "upstream")):
        arguments = ["--model", "retrieval", "--length", length, "--out", str(file), *objective]
        print(f"\n$ minference search {' '.join(arguments)}", flush=True)
        if minference(["search", *arguments, "--restart"]) != 0:
            raise SystemExit(1)
    record = json.loads(ours.with_suffix(".search.json").read_text(encoding="utf-8"))
    roles = head_roles(RetrievalSpec())
    found: dict[tuple[str, str, str], int] = {}
    for head in record["heads"]:
        key = (roles[head["layer"]][head["head"]], head["pattern"], head["reason"])
        found[key] = found.get(key, 0) + 1
    print_table(
        "patterns by what the head was built for: slash, a_shape, a_shape, vertical_slash",
        [
            {"role": role, "pattern": pattern, "heads": count, "why": reason}
            for (role, pattern, reason), count in sorted(found.items())
        ],
    )
    arguments = [str(ours), str(upstream), "--model", "retrieval", "--length", length]
    arguments += ["--samples", "2", "--equal-cost", "--json", str(out / "errors.json")]
    print(f"\n$ minference compare {' '.join(arguments)}", flush=True)
    if minference(["compare", *arguments]) != 0:
        raise SystemExit(1)


def cost(_lengths: str, out: Path) -> None:
    """search of 2 layers x 4 heads at 32K: wants <= 2 min, memory <= 2 x the model's own prefill"""
    peaks = {}
    for what in ("prefill", "search"):
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--measure", what],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        peaks[what] = json.loads(done.stdout)
    rows: Rows = [
        {
            "what": what,
            "seconds": round(found["seconds"], 1),
            "peak MiB": round(found["bytes"] / 2**20),
            "/ prefill": round(found["bytes"] / peaks["prefill"]["bytes"], 2),
        }
        for what, found in peaks.items()
    ]
    print_table(f"cost: {cost.__doc__}", rows)
    (out / "search_cost.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def resume(_lengths: str, out: Path) -> None:
    """a search that is killed after its first layer and goes on: wants the same files"""
    files = {name: out / f"{name}.json" for name in ("whole", "killed")}
    commands = {
        name: [
            *(sys.executable, "-m", "minference_ext", "search", "--model", "retrieval"),
            *("--length", "8192", "--budget", "256,1024", "--out", str(file)),
        ]
        for name, file in files.items()
    }
    subprocess.run([*commands["whole"], "--restart"], check=True, capture_output=True)
    progress = Path(f"{files['killed']}.progress.json")
    progress.unlink(missing_ok=True)
    process = subprocess.Popen(
        commands["killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not progress.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    was_killed = progress.exists()
    subprocess.run([*commands["killed"], "--resume"], check=True, capture_output=True)
    same = [
        files["whole"].with_suffix(suffix).read_bytes()
        == files["killed"].with_suffix(suffix).read_bytes()
        for suffix in (".json", ".search.json")
    ]
    row: dict[str, object] = {"killed": was_killed, "patterns": same[0], "record": same[1]}
    print_table(f"resume: {resume.__doc__}", [row])
    for file in files.values():
        for suffix in (".json", ".search.json"):
            file.with_suffix(suffix).unlink()
    if not (was_killed and all(same)):
        raise SystemExit(1)


SECTIONS: dict[str, Callable[[str, Path], None]] = {
    "retrieval": retrieval,
    "mid_prompt": mid_prompt,
    "tracking": tracking,
    "search": search,
    "cost": cost,
    "resume": resume,
}


# ---- In a process of its own ---------------------------------------------------------------------


def _measure(what: str) -> None:
    """Prints seconds and bytes of a prefill, or of a search, of 2 layers x 4 heads."""
    spec = RetrievalSpec(num_heads=4)
    model: Any = build_retrieval_model(spec, dtype=torch.bfloat16)
    loaded = LoadedModel("retrieval", model, None, spec)
    short, prompt = (key_value_prompts(loaded, length, 1, 0)[0] for length in (4096, SEARCH_LENGTH))
    seconds = []

    def run() -> None:
        begin = time.perf_counter()
        if what == "prefill":
            prefill(model, prompt.input_ids)
        else:
            search_patterns(model, [prompt], SearchSettings(), name="retrieval")
        seconds.append(time.perf_counter() - begin)

    prefill(model, short.input_ids)  # libraries load what they need
    search_patterns(model, [short], SearchSettings(sink=64, window=256), name="retrieval")
    increase = peak_increase(run, torch.device("cpu"))
    print(json.dumps({"seconds": seconds[0], "bytes": increase}))


def main(argv: Sequence[str] | None = None) -> int:
    sections = "\n".join(f"  {name:10} {section.__doc__}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench.accuracy",
        description=__doc__.split("\n")[0],
        epilog=f"sections (default: all):\n{sections}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "--lengths", default=str(SEARCH_LENGTH), help=f"tokens (default: {SEARCH_LENGTH})"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "accuracy", metavar="DIR")
    parser.add_argument("--measure", choices=("prefill", "search"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        _measure(options.measure)
        return 0
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(
            f"SECTION is {', '.join(sorted(unknown))}; it must be of {', '.join(SECTIONS)}"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    where = machine.describe()
    print("  ".join(f"{key}: {value}" for key, value in where.items()))
    (options.out / "machine.json").write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")
    for name in options.sections or SECTIONS:
        print(f"\n== {name}: {SECTIONS[name].__doc__}", flush=True)
        SECTIONS[name](options.lengths, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
