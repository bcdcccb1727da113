"""`make gpu` where there is no GPU: with programs that stand in for nvidia-smi, compute-sanitizer,
the CUDA tests and the benchmarks, and the parts of the benchmarks that run on a CPU."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import build, goals, machine, report, steps

ROOT = Path(__file__).resolve().parent.parent

SMI = """
case "$*" in
  *--loop-ms*) while true; do echo '1980, 512.5, 60'; sleep 0.05; done;;
  *) echo 'NVIDIA H200, 580.1, 143771, 700.00, 1980, 3201, 9.0';;
esac
"""
KERNELS = """
import json
print(json.dumps(dict(section="copy", length=0, l2="flushed", ms=1, p10=1, p90=1, runs=5,
                      bytes=4.3e9)))
for length, ms in ((131072, 0.4), (524288, 1.7)):
    print(json.dumps(dict(section="index", length=length, pattern="(1000, 6096)", data="prompt",
                          stage="index + plan", l2="flushed", ms=ms, p10=ms, p90=2 * ms, runs=9,
                          bytes=1e9, flop=1e11)))
print('{"section": "index", "cut of')
raise SystemExit(3)
"""
TORCH = """
import json
for contender, ms in (("SDPA cuDNN", 220.0), ("ours", None)):
    row = dict(section="attention", length=131072, pattern="dense", contender=contender)
    row.update(dict(ms=ms, p10=ms, p90=ms, runs=3, useful_flop=1.4e14) if ms else dict(note="none"))
    print(json.dumps(row))
"""


def program(path: Path, text: str, interpreter: str = "/bin/sh") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}")
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with the script alone and a package that has no CUDA kernels."""
    root = tmp_path / "tree"
    shutil.copytree(
        ROOT / "bench/gpu", root / "bench/gpu", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("__init__.py", "commit.py"):
        shutil.copy(ROOT / "bench" / name, root / "bench")
    (root / "bench/gpu/attention.py").write_text(TORCH)
    (root / "python").mkdir()
    (root / "python/minference_ext.py").write_text("def has_cuda(): return False\n")
    for name in ("good", "bad", "absent"):
        (root / f"tests/cpp/cuda/{name}_test.cpp").parent.mkdir(parents=True, exist_ok=True)
        (root / f"tests/cpp/cuda/{name}_test.cpp").touch()
    program(root / "build/gpu/good_test", "echo all 7 passed with ${PTXSIM_MEMCHECK:-nothing} set")
    program(root / "build/gpu/bad_test", "echo 1 wrong; exit 1")
    program(root / "build/gpu/kernel_bench", KERNELS, sys.executable)
    program(tmp_path / "bin/nvidia-smi", SMI)
    program(tmp_path / "bin/compute-sanitizer", 'for last; do :; done; "$last" && echo 0 errors')
    return root


def run_script(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *arguments],
        cwd=tree,
        env={**os.environ, "PATH": f"{tree.parent / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_gpu_it_says_so(tree: Path) -> None:
    (tree.parent / "bin/nvidia-smi").unlink()
    run = run_script(tree)
    assert run.returncode == 0
    assert run.stdout.startswith("no NVIDIA GPU found: nvidia-smi is not on PATH")
    program(tree.parent / "bin/nvidia-smi", "echo No devices were found; exit 6")
    run = run_script(tree)
    assert run.returncode == 0
    assert "no NVIDIA GPU found: nvidia-smi says: No devices were found" in run.stdout
    assert not (tree / "bench/results").exists()


def test_all_parts_and_their_table(tree: Path) -> None:
    run = run_script(tree, "tests", "sanitizers", "benchmarks", "--commit", "abc1234")
    assert run.returncode == 1, run.stdout + run.stderr
    table = run.stdout[run.stdout.index("\npart ") :]

    def line(*words: str) -> str:
        found = [text for text in table.splitlines() if all(word in text for word in words)]
        assert len(found) == 1, (words, table)
        return found[0]

    assert "all 7 passed with nothing set" in line("tests", "good_test", "ok")
    assert "exit status 1; 1 wrong" in line("tests", "bad_test", "failed")
    assert "not built" in line("tests", "absent_test", "skipped")
    assert "built without CUDA kernels" in line("pytest -m gpu", "skipped")
    assert "0 errors" in line("sanitizers", "racecheck good_test", "ok")
    line("sanitizers", "racecheck bad_test", "failed")
    line("benchmarks", "kernels", "exit status 3")
    assert "wants <= 0.45 ms: met" in line("128K (1000, 6096) prompt", "58% of copy")
    assert "wants <= 1.6 ms: MISSED" in line("512K (1000, 6096) prompt")
    assert "636 TFLOP/s" in line("attention", "128K dense, SDPA cuDNN", "220")
    assert line("128K dense, ours").endswith("none")

    (path,) = (tree / "bench/results/nvidia-h200").glob("*-abc1234.json")
    written = json.loads(path.read_text())
    assert written["machine"]["device"] == "NVIDIA H200"
    clocks = written["machine"]["clocks during benchmarks, [least, median, greatest]"]
    assert clocks["SM clock MHz"] == [1980, 1980, 1980]
    assert [row["section"] for row in written["kernels"]] == ["copy", "index", "index"]
    assert [row["contender"] for row in written["torch"]] == ["SDPA cuDNN", "ours"]
    log = (tree / "build/gpu.log").read_text()
    assert "all 7 passed with 1 set" in log  # memcheck sees the ends of buffers


def test_no_failure_is_exit_status_0(tree: Path) -> None:
    program(tree / "build/gpu/bad_test", "exit 0")
    run = run_script(tree, "tests")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("no step failed\n")


def test_a_part_that_hangs_costs_its_own_time_only(tree: Path) -> None:
    program(tree / "build/gpu/bad_test", "sleep 60")
    start = time.monotonic()
    run = run_script(tree, "tests", "benchmarks", "--minutes", "0.4")
    assert time.monotonic() - start < 0.4 * 60 + 5
    assert run.returncode == 1
    assert "out of time" in run.stdout
    assert "220" in run.stdout[run.stdout.index("\npart ") :]


def test_what_is_missing_is_built(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tree.parent / "bin/cmake", "exit 0")
    program(tree.parent / "bin/nvcc", "exit 0")
    (tree / "setup.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['CMAKE_ARGS'])\n"
    )
    monkeypatch.setenv("CMAKE_ARGS", "-DA=1")
    run = run_script(tree, "build")
    assert run.returncode == 0, run.stdout
    assert (
        "'build_ext', '--inplace'] -DA=1 -DMINFERENCE_CUDA=ON -DMINFERENCE_TESTS=ON" in run.stdout
    )


def test_without_tools_nothing_is_built(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    step = build.everything_step(tree)
    assert not step.command
    assert "cmake" in step.note
    assert "not found" in step.note


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["test"], "PART is test; it must be of build,"), (["--minutes", "0"], "it must be > 0")],
)
def test_bad_arguments(tree: Path, arguments: list[str], complaint: str) -> None:
    run = run_script(tree, *arguments)
    assert run.returncode == 2
    assert complaint in run.stderr


# ---- Steps --------------------------------------------------------------------------------------


def run_step(tmp_path: Path, script: str, limit: float, seconds: float = 60) -> steps.Outcome:
    step = steps.Step("part", "name", ["/bin/sh", "-c", script], limit=limit)
    return steps.run(step, steps.Budget(seconds, {"part": 1}, 0), io.StringIO(), tmp_path)


def test_a_step_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    outcome = run_step(tmp_path, "trap '' TERM; (sleep 6; touch alive) & sleep 60", limit=2)
    assert outcome.result == steps.OUT_OF_TIME
    assert outcome.is_bad
    assert outcome.seconds < 6
    time.sleep(max(0.0, 7 - outcome.seconds))
    assert not (tmp_path / "alive").exists()


def test_a_step_without_time_or_program(tmp_path: Path) -> None:
    assert run_step(tmp_path, "true", limit=60, seconds=1).result == steps.SKIPPED
    step = steps.Step("part", "name", [str(tmp_path / "no such program")])
    outcome = steps.run(step, steps.Budget(60, {"part": 1}, 0), io.StringIO(), tmp_path)
    assert outcome.result == steps.FAILED
    assert "no such program" in outcome.note


def test_what_a_part_leaves_over_serves_the_next() -> None:
    budget = steps.Budget(110, {"first": 1, "second": 3}, 10)
    assert budget.left("first") == pytest.approx(25, abs=1)
    assert budget.left("second") == pytest.approx(100, abs=1)


def test_slug() -> None:
    assert machine.slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


def test_table_of_nothing() -> None:
    assert report.table([], "NVIDIA H200").split() == list(report._COLUMNS)


ALONE = goals.ALONE
LENGTH = 131072


def attention_row(
    pattern: str, contender: str, ms: float, tflop: float = 1, **members: object
) -> steps.Row:
    return {
        "section": "attention",
        "length": LENGTH,
        "pattern": pattern,
        "contender": contender,
        "useful_flop": tflop * 1e12,
        **dict.fromkeys(("ms", "p10", "p90"), ms),
        **members,
    }


def of_sm90(
    pattern: str, contender: str, ms: float, tflop: float = 1, **members: object
) -> steps.Row:
    return attention_row(pattern, contender, ms, tflop, kernel="sm90", slots=132, **members)


def table_lines(rows: Sequence[steps.Row], device: str) -> list[str]:
    outcome = steps.Outcome("benchmarks", "rows", steps.OK, rows=tuple(rows))
    return report.table([outcome], device).splitlines()


def assert_notes(
    rows: Sequence[steps.Row], device: str, case: str, *notes: str, lacks: Sequence[str] = ()
) -> None:
    """That the line of a case has the notes."""
    (line,) = (line for line in table_lines(rows, device) if f"  {case}  " in line)
    for note in notes:
        assert note in line
    for note in lacks:
        assert note not in line


def test_goals_of_the_mma_sync_kernel() -> None:
    rows = (
        attention_row("dense", ALONE, 100, 100, kernel="sm80"),
        attention_row("dense", ALONE, 1, 100, queries=512, kernel="sm80"),
        attention_row("clustered 90%", ALONE, 10, 9.5, kernel="sm80"),
        attention_row("clustered 95%", ALONE, 5, 4.5, kernel="sm80"),
        attention_row("clustered 98%", ALONE, 1, 0.01, queries=512, kernel="sm80"),
        attention_row("dense", "SDPA flash, key heads repeated", 99),
        attention_row("dense", "SDPA cuDNN", 60),
        attention_row("dense", "ours, torch", 100, kernel="sm80"),
        attention_row("clustered 95%", "ours", 400, length=1 << 20, kernel="sm80"),
        attention_row("isolated", ALONE, 90, length=1 << 20, kernel="sm80", line_bytes=1e12),
    )
    lines = [line for line in table_lines(rows, "a GPU") if "wants" in line]
    assert len(lines) == 3, lines
    assert "0.950x of dense's rate, wants >= 0.94: met" in lines[0]
    assert "0.900x of dense's rate, wants >= 0.92: MISSED" in lines[1]
    assert "0.990x of SDPA flash, wants >= 1.0: MISSED" in lines[2]
    assert_notes(rows, "a GPU", f"512 queries, 128K clustered 98%, {ALONE} (sm80)")
    # An H200 is there for the other kernel: its rates are wanted whichever runs.
    slow = [attention_row("dense", ALONE, 1000, 350, kernel="sm80")]
    missed = "350 TFLOP/s, wants >= 640: MISSED"
    assert_notes(slow, "NVIDIA H200", f"128K dense, {ALONE} (sm80)", missed)


@pytest.mark.parametrize(
    ("pattern", "members", "wanted"),
    [
        ("dense", {}, 640),
        ("dense", {"length": 16384}, 640),
        ("dense", {"queries": 512}, 560),
        ("a_shape(1024, 4096)", {"queries": LENGTH}, 600),
        ("clustered 90%", {}, 600),
        ("clustered 90%", {"queries": 512}, 560),
        ("clustered 95%", {}, 590),
        ("clustered 98%", {}, 550),
    ],
)
def test_rates_wanted_of_an_h200(pattern: str, members: dict[str, Any], wanted: int) -> None:
    case = f"{'16K' if 'length' in members else '128K'} {pattern}, {ALONE} (sm90)"
    if members.get("queries") == 512:
        case = f"512 queries, {case}"
    for tflop, verdict in ((wanted, "met"), (wanted - 1, "MISSED")):
        rows = [of_sm90(pattern, ALONE, 1000, tflop, **members)]
        figure = f"{tflop} TFLOP/s, "
        assert_notes(rows, "NVIDIA H200", case, f"{figure}wants >= {wanted}: {verdict}")
        other = f"{figure}H200 wants >= {wanted}"
        assert_notes(rows, "NVIDIA H100", case, other, lacks=["met", "MISSED"])


def test_rates_are_wanted_of_some_rows_only() -> None:
    rows = [
        of_sm90("dense", ALONE, 1, length=32768),
        of_sm90("dense", ALONE, 1, queries=1024),
        of_sm90("random (100, 800)", ALONE, 1),
        of_sm90("dense", "ours", 1),
        of_sm90("dense", ALONE, 1, l2="warm"),
        attention_row("dense", goals.MMA_SYNC_ALONE, 1, kernel="sm80"),
        attention_row("dense", "SDPA cuDNN", 1),
    ]
    assert not [line for line in table_lines(rows, "NVIDIA H200") if "wants" in line]


@pytest.mark.parametrize("name", ["NVIDIA H200", "NVIDIA H100"])
def test_ratios_wanted_of_the_sm90_kernel(name: str) -> None:
    rows = [
        of_sm90("dense", "ours, torch", 100),
        attention_row("dense", "SDPA cuDNN, key heads repeated", 101),
        attention_row("dense", "SDPA flash", 50),
        of_sm90("dense", "ours, torch", 100, length=16384),
        attention_row("dense", "SDPA cuDNN", 99, length=16384),
        of_sm90("dense", "ours, torch", 100, length=524288),
        attention_row("dense", "SDPA cuDNN", 90, length=524288),
    ]
    case = "dense, ours, torch (sm90)"
    met = "1.010x of SDPA cuDNN, wants >= 1.0: met"
    assert_notes(rows, name, f"128K {case}", met, lacks=["flash"])
    missed = "0.990x of SDPA cuDNN, wants >= 1.0: MISSED"
    assert_notes(rows, name, f"16K {case}", missed)
    assert_notes(rows, name, f"512K {case}", "0.900x of SDPA cuDNN", lacks=["wants"])


def test_isolated_lines_are_held_to_the_copy_bandwidth() -> None:
    copy = {"section": "copy", "length": 0, "ms": 1, "bytes": 4e9}
    case = f"1M isolated, {ALONE} (sm90)"
    for ms, share, verdict in ((100, "85.0%", "met"), (101, "84.2%", "MISSED")):
        row = of_sm90("isolated", ALONE, ms, length=1 << 20, line_bytes=340e9)
        note = f"lines take 85 ms at the bandwidth of a copy, {share} of the time, wants >= 85%"
        assert_notes([copy, row], "a GPU", case, f"{note}: {verdict}")
        assert_notes([row], "a GPU", case, "not judged: the bandwidth of a copy was not measured")
    shorter = of_sm90("isolated", ALONE, 100, length=1 << 19, line_bytes=340e9)
    case = case.replace("1M", "512K")
    assert_notes([copy, shorter], "a GPU", case, "85.0% of the time", lacks=["wants"])


def test_a_layer_of_a_million_tokens() -> None:
    index = {
        "section": "index",
        "length": 1 << 20,
        "pattern": "(1000, 6096)",
        "data": "prompt",
        "stage": "index + plan",
        "ms": 3,
    }
    case = "1M clustered 95%, ours (sm90)"
    for ms, of_layer, of_dense in ((797, "met", "17.500x"), (798, "MISSED", "17.478x")):
        row = of_sm90("clustered 95%", "ours", ms, length=1 << 20)
        cudnn = attention_row("dense", "SDPA cuDNN", 14000, length=1 << 20)
        time = f"with index {ms + 3} ms, wants <= 800: {of_layer}"
        ratio = f"{of_dense} of SDPA cuDNN, wants >= 17: met"
        assert_notes([index, cudnn, row], "NVIDIA H200", case, time, ratio)
        assert_notes([index, cudnn, row], "NVIDIA H100", case, "H200 wants <= 800", ratio)
        no_peer = "not judged: cuDNN at 1M was not timed"
        assert_notes([index, row], "NVIDIA H200", case, time, no_peer)
        no_index = "not judged: the index at 1M was not timed"
        assert_notes([cudnn, row], "NVIDIA H200", case, no_index, lacks=["wants"])
    late = of_sm90("clustered 95%", "ours", 850, length=1 << 20)
    missed = "16.413x of SDPA cuDNN, wants >= 17: MISSED"
    assert_notes([index, cudnn, late], "a GPU", case, missed)


def test_kernels_and_multiprocessors_beside_each_other() -> None:
    rows = [
        of_sm90("clustered 90%", ALONE, 10),
        attention_row("clustered 90%", goals.MMA_SYNC_ALONE, 19, kernel="sm80"),
        of_sm90("dense", ALONE, 100),
        {**of_sm90("dense", goals.RESERVED, 115), "slots": 116},
        of_sm90("dense", goals.FLOAT8, 80),
    ]
    assert_notes(rows, "a GPU", f"128K clustered 90%, {ALONE} (sm90)", "1.90x of mma.sync")
    assert_notes(rows, "a GPU", "128K clustered 90%, mma.sync, attention alone (sm80)")
    note = "takes 1.150 times as long as on all, 1.138 by their number"
    assert_notes(rows, "a GPU", f"128K dense, {goals.RESERVED} (sm90)", note)
    assert_notes(rows, "a GPU", f"128K dense, {goals.FLOAT8} (sm90)", "1.25x of bfloat16")


@pytest.mark.parametrize("is_long", [False, True])
def test_long_reaches_the_torch_benchmark(is_long: bool) -> None:
    from bench.gpu.__main__ import benchmark_steps

    *_, step = benchmark_steps(build.Built({}, [], "", False), is_long)
    assert step.name == "torch"
    assert ("--long" in step.command) == is_long


# ---- Benchmarks on the CPU ----------------------------------------------------------------------


def test_cover_and_its_blocks_are_those_of_the_definition() -> None:
    import torch

    from bench.gpu import patterns

    length, heads = 640, 3
    shape = patterns.LineShape(num_vertical=9, local=3, bands=2, width=70)
    vertical_idx, slash_idx = patterns.lists(shape, length, heads, torch.device("cpu"))
    cover = patterns.Cover.of(vertical_idx, slash_idx, length)
    some, full = cover.blocks()
    row, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    end = (row // 64 + 1) * 64
    for head in range(heads):
        attended = torch.zeros(length, length, dtype=torch.bool)
        for slash in slash_idx[0, head][slash_idx[0, head] >= 0]:
            attended |= (end - 64 - slash <= key) & (key < end - slash)
        attended[:, vertical_idx[0, head][vertical_idx[0, head] >= 0].long()] = True
        by_mask = cover.columns[head, key] | cover.cover[head, (end - key).clamp(min=0)]
        assert torch.equal(by_mask & (row >= key), attended & (row >= key))
        attended &= row >= key
        tiles = attended.view(length // 128, 128, length // 128, 128).transpose(1, 2)
        # A block on the diagonal may hold covered keys that causality takes away.
        assert torch.all(some[head] >= tiles.any(-1).any(-1))
        assert torch.equal(some[head].tril(-1), tiles.any(-1).any(-1).tril(-1))
        assert torch.equal(full[head], tiles.all(-1).all(-1))


@pytest.mark.parametrize("share", [0.1, 0.05, 0.02])
def test_clustered_lines_attend_their_share(share: float) -> None:
    from bench.gpu import patterns

    length = 32768
    _, slashes = patterns.draw(patterns.clustered(share, length), length, seed=0)
    assert 0.6 * share < patterns.slash_share(slashes, length) <= share * 7 / 8
    shape = patterns.clustered_heads(share, length, heads=8)
    drawn = [patterns.draw(shape, length, seed)[1] for seed in range(8)]
    shares = [patterns.slash_share(slashes, length) for slashes in drawn]
    assert sum(shares) / 8 + shape.num_vertical / length == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize(("length", "heads_per_kv"), [(1 << 20, 4), (4096, 1), (64, 2)])
def test_isolated_lines_are_far_from_each_other(length: int, heads_per_kv: int) -> None:
    import torch

    from bench.gpu import patterns

    drawn = [patterns.isolated_lines(length, head, heads_per_kv) for head in range(heads_per_kv)]
    assert all(verticals.tolist() == [0, 1, 2, 3] for verticals, _ in drawn)
    count = {len(slashes) for _, slashes in drawn}
    assert count == {1 + min(max(length // (128 * heads_per_kv), 1), 40)}
    slashes = torch.cat([slashes[1:] for _, slashes in drawn]).sort().values
    assert slashes.max() < length
    distance = torch.cat([slashes[:1], slashes.diff()]).min()
    # At 1M tokens more than the 132 x 128 rows of 4 heads that an H200 works on.
    assert distance > (132 * 128 // 4 if length == 1 << 20 else length // 200)
    _, slash_idx = patterns.isolated(length, 2 * heads_per_kv, heads_per_kv, torch.device("cpu"))
    assert slash_idx.shape == (1, 2 * heads_per_kv, *count)
    assert torch.equal(slash_idx[0, 0].long(), drawn[0][1])


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    from bench.gpu import attention

    small = ["--device=cpu", "--seconds=0.001", "--heads=2", "--heads-kv=1"]
    small += ["--matmul=64", "--copy-mib=1"]
    assert attention.main([*small, *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_rows_of_the_torch_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    import minference_ext

    sections = "--sections=ceilings,index,attention"
    rows = rows_of(capsys, "--lengths=300", sections)
    by_section: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_section.setdefault(row["section"], []).append(row)
    assert {"matmul", "copy", "index", "attention"} == set(by_section)
    ours = [row for row in by_section["attention"] if row["contender"].startswith("ours")]
    found = {row["pattern"] for row in ours}
    assert {"dense", "a_shape(1024, 4096)", "clustered 90%", "isolated"} <= found
    assert all("ms" in row for row in ours)
    assert {row["kernel"] for row in ours} <= {name for name, _ in minference_ext.cpu_kernels()}
    # A backend that this machine lacks is a row that says so, and no end of the others.
    cudnn = [row for row in by_section["attention"] if "cuDNN" in row["contender"]]
    assert cudnn
    assert all(row["note"].startswith("failed: ") for row in cudnn)


def test_the_longest_dense_runs_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.gpu import attention

    monkeypatch.setattr(attention, "_LONGEST_DENSE", 128)
    monkeypatch.setattr(attention, "_LONGEST_FLASH", 128)
    arguments = ("--lengths=192", "--sections=attention")

    def dense(*more: str) -> dict[str, str]:
        rows = rows_of(capsys, *arguments, *more)
        return {row["contender"]: row["note"] for row in rows if row["pattern"] == "dense"}

    assert dense() == {"SDPA": "skipped: two runs would take 0 s; --long makes them"}
    (contender,) = dense("--long")  # which no CPU has
    assert contender.startswith("SDPA cuDNN")


def test_a_build_without_kernels_is_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import minference_ext
    import torch

    from bench.gpu import attention

    monkeypatch.setattr(minference_ext, "has_cuda", lambda: False)
    of_cpu, _ = attention._import_ours(torch.device("cpu"))
    assert of_cpu is minference_ext
    absent = attention._import_ours(torch.device("cuda"))
    assert absent == (None, "this build of minference_ext has no CUDA kernels")
    monkeypatch.setattr(attention, "_import_ours", lambda device: absent)
    rows = rows_of(capsys, "--lengths=256", "--sections=attention")
    ours_rows = [row for row in rows if row["contender"].startswith("ours")]
    assert [row["note"] for row in ours_rows] == [absent[1]]
    assert "ms" not in ours_rows[0]


def test_flex_attends_what_ours_does(capsys: pytest.CaptureFixture[str]) -> None:
    import minference_ext
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    from bench.gpu import attention, patterns

    length = 512
    q, k, v = (torch.randn(1, heads, length, 64) for heads in (4, 2, 2))
    lists = patterns.lists(patterns.clustered(0.1, length), length, 4, torch.device("cpu"))
    mask, num_blocks = attention.flex_mask(BlockMask, patterns.Cover.of(*lists, length))
    found = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    expected, _ = minference_ext.vs_attention_with_index(q, k, v, *lists)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 0 < num_blocks <= 4 * 10
    rows = rows_of(capsys, "--lengths=262144", "--sections=flex")
    assert "skipped: block masks of" in rows[0]["note"]
