"""minference eval on the retrieval model: what each method finds, files that go on where a run
ended, tables, pictures, and sentences for what makes no sense."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.command_line import Failure
from minference_ext.evaluation import (
    Case,
    Results,
    Row,
    Settings,
    evaluate,
    even_depths,
    identity,
    mean_score,
    mean_seconds,
    needle_maps,
    parse_contenders,
    parse_tasks,
    summary,
)
from minference_ext.evaluation.retrieval_model import Questions, RetrievalTask, asked_at
from minference_ext.methods.static import Static
from minference_ext.models import LoadedModel, load_model
from minference_ext.testing import needles_at_depths

Capture = pytest.CaptureFixture[str]
RETRIEVAL_TASKS = "niah,kv_retrieval,variable_tracking,mid_prompt"
ONE = Settings(samples=1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("retrieval", dtype=torch.float32)


@pytest.fixture(scope="module")
def in_bfloat16() -> LoadedModel:
    """Twice as fast."""
    return load_model("retrieval", dtype=torch.bfloat16)


def scores(rows: list[Row], task: str, method: str) -> list[float]:
    return [row.score for row in rows if (row.task, row.method) == (task, method)]


# ---- What methods find ---------------------------------------------------------------------------


def test_methods_find_what_they_attend(in_bfloat16: LoadedModel) -> None:
    sink, window, length = 64, 512, 4096
    lines = "vertical_slash(100,16)"
    window_text = f"streaming_llm({sink},{window})"
    rows = evaluate(
        in_bfloat16, "niah,kv_retrieval", f"dense,{lines},{window_text}", [length], settings=ONE
    )
    assert scores(rows, "niah", "dense") == scores(rows, "niah", lines) == [1.0] * 10
    assert scores(rows, "kv_retrieval", "dense") == scores(rows, "kv_retrieval", lines) == [1.0]

    # The same prompt, read by eye: which needles lie in the sink or in the question's window?
    prompt = needles_at_depths(length, even_depths(10), 0)
    pairs = zip(prompt.evidence_positions, prompt.answer_positions, strict=True)
    seen = [place < sink or question - place < window for (place,), question in pairs]
    assert scores(rows, "niah", window_text) == list(map(float, seen))
    assert 0 < sum(seen) < 5

    by_depth = [row for row in rows if (row.task, row.method) == ("niah", "dense")]
    assert [row.depth for row in by_depth] == list(even_depths(10))
    assert [row.answer for row in by_depth] == list(map(str, prompt.answers))
    assert len({row.seconds for row in by_depth}) == 1  # one prefill answers all depths

    # Pairs of the pattern by its definition; tiles add at most a block of 64 at each of two edges.
    shares = {row.method: row.computed_share for row in rows if row.task == "niah"}
    pairs_attended = sum(min(query + 1, sink + window) for query in range(length))
    attended = pairs_attended / (length * (length + 1) / 2)
    share = shares[window_text]
    assert share is not None
    assert attended < share < attended + 2 * 64 * length / (length * (length + 1) / 2)
    assert shares["dense"] == 1.0


def test_questions_in_the_middle_need_an_estimate_of_their_own(in_bfloat16: LoadedModel) -> None:
    """vertical_slash reads the last 64 queries, which ask for other columns."""
    once, per_chunk = "vertical_slash(100,16)", "vertical_slash_per_chunk(100,16,1024)"
    rows = evaluate(in_bfloat16, "mid_prompt", f"dense,{once},{per_chunk}", [4096], settings=ONE)
    assert scores(rows, "mid_prompt", "dense") == [1.0] * 10
    assert scores(rows, "mid_prompt", per_chunk) == [1.0] * 10
    found = scores(rows, "mid_prompt", once)
    assert found[1:9] == [0.0] * 8  # those at the ends lie in columns and diagonals of all prompts


@pytest.mark.parametrize(
    ("length", "end"),
    [(256, 128), (1000, 448), (4096, 2048), (8192, 4096), (32768, 16384), (20000, 8192)],
)
def test_questions_in_the_middle_end_where_chunks_do(length: int, end: int) -> None:
    assert round(asked_at(length) * length) == end


def test_variables_are_followed_as_far_as_the_model_goes() -> None:
    loaded = load_model("retrieval:3")
    methods = "dense,vertical_slash(100,16),streaming_llm(64,128)"
    rows = evaluate(loaded, "variable_tracking", methods, [2048], settings=ONE)
    (row, lines, window) = rows
    assert (row.score, lines.score) == (1.0, 1.0)
    assert window.score < 0.5
    assert row.prediction == row.answer
    assert len(row.answer.split()) == 8


def test_pytorch_attention_is_a_method(loaded: LoadedModel) -> None:
    rows = evaluate(loaded, "niah", "sdpa,dense", [256], settings=ONE)
    assert {row.method: row.computed_share for row in rows} == {"sdpa": None, "dense": 1.0}
    assert all(row.score == 1.0 for row in rows)


def test_more_depths_than_one_prompt_holds(loaded: LoadedModel) -> None:
    settings = Settings(samples=1, depths=even_depths(40))
    rows = evaluate(loaded, "niah", "dense", [512], settings=settings)
    assert [row.depth for row in rows] == list(even_depths(40))
    assert mean_score(rows) == 1.0
    assert len({row.seconds for row in rows}) == 2


@pytest.mark.parametrize("task", RETRIEVAL_TASKS.split(","))
def test_prompts_depend_on_seed_and_sample_alone(loaded: LoadedModel, task: str) -> None:
    def answers(seed: int) -> list[str]:
        settings = Settings(samples=2, seed=seed)
        return [row.answer for row in evaluate(loaded, task, "sdpa", [256], settings=settings)]

    first = answers(0)
    assert first == answers(0)
    assert first != answers(5)
    half = len(first) // 2
    assert first[:half] != first[half:]
    assert first[half:] == answers(1)[:half]  # the seed counts on


# ---- Methods that remember -----------------------------------------------------------------------


def test_a_method_with_memory_learns_from_a_prompt_of_its_own(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of the first prompt itself would find all of its needles."""
    events: list[str] = []
    calibration, forget = RetrievalTask.calibration, Static.forget

    def noted(task: RetrievalTask, length: int) -> Any:
        events.append(f"{task.name} {length}")
        return calibration(task, length)

    def noted_forget(method: Static) -> None:
        events.append("forget")
        forget(method)

    monkeypatch.setattr(RetrievalTask, "calibration", noted)
    monkeypatch.setattr(Static, "forget", noted_forget)
    settings = Settings(samples=2)
    rows = evaluate(loaded, "niah,mid_prompt", "static(100,16)", [1024, 2048], settings=settings)
    found = scores(rows, "niah", "static(100,16)")
    assert len(found) == 2 * 2 * 10
    assert sum(found) < 0.5 * len(found)
    checked_first = ["niah 1024", "mid_prompt 1024"]
    assert events[:2] == checked_first
    assert events[2:] == [
        event
        for task in ("niah", "mid_prompt")
        for length in (1024, 2048)
        for event in ("forget", f"{task} {length}")
    ]


def test_a_calibration_prompt_has_its_needles_elsewhere(loaded: LoadedModel) -> None:
    (name,) = parse_tasks("niah")
    task = name.family.make("", loaded, ONE)
    (case,) = task.cases(2048)
    asked, calibration = task.prompt(2048, case), task.calibration(2048)
    assert isinstance(asked, Questions)
    assert isinstance(calibration, Questions)
    assert not set(asked.prompt.evidence_positions) & set(calibration.prompt.evidence_positions)
    single = name.family.make("", loaded, Settings(samples=1, depths=(0.5,)))
    calibration = single.calibration(2048)
    assert isinstance(calibration, Questions)
    assert calibration.depths == (0.25,)


# ---- Files that go on ----------------------------------------------------------------------------

METHODS = "dense,a_shape(64,128)"


def opened(
    path: Path, loaded: LoadedModel, settings: Settings, *, restart: bool = False
) -> Results:
    known = identity(torch.float32, settings, parse_contenders(METHODS))
    return Results.open(path, loaded.name, known, restart=restart)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Lets so many prompts run, then raises; the list counts those that ran."""
    answers = Questions.answers

    def arm(count: int, error: BaseException | None) -> list[int]:
        ran: list[int] = []

        def counted(self: Questions, loaded: LoadedModel) -> Any:
            if len(ran) == count and error is not None:
                raise error
            ran.append(1)
            return answers(self, loaded)

        monkeypatch.setattr(Questions, "answers", counted)
        return ran

    return arm


def without_times(rows: list[Row]) -> list[tuple[object, ...]]:
    return [
        (row.task, row.method, row.length, row.sample, row.depth, row.score, row.prediction,
         row.answer, row.computed_share)
        for row in rows
    ]  # fmt: skip


def test_a_run_goes_on_where_it_ended(
    loaded: LoadedModel, tmp_path: Path, stop_after: Callable[..., list[int]]
) -> None:
    path, settings = tmp_path / "r.json", Settings(samples=3)
    whole = evaluate(loaded, "niah,kv_retrieval", METHODS, [256, 300], settings=settings)
    assert len(whole) == 2 * 2 * 3 * (10 + 1)

    stop_after(5, RuntimeError("out of memory"))
    with pytest.raises(Failure, match=r"niah, 256 tokens, a_shape\(64,128\): out of memory"):
        evaluate(
            loaded, "niah,kv_retrieval", METHODS, [256, 300], settings=settings,
            results=opened(path, loaded, settings),
        )  # fmt: skip
    kept: dict[str, Any] = json.loads(path.read_text())
    assert (kept["format"], kept["version"]) == ("minference_evaluation", 1)
    assert kept["model"] == "retrieval"
    assert len(kept["rows"]) == 5 * 10
    assert list(tmp_path.iterdir()) == [path]

    ran = stop_after(0, None)
    again = evaluate(
        loaded, "niah,kv_retrieval", METHODS, [256, 300], settings=settings,
        results=opened(path, loaded, settings),
    )  # fmt: skip
    assert len(ran) == 24 - 5
    assert without_times(again) == without_times(whole)
    seconds = [row.seconds for row in again]
    assert seconds[:50] == [row["seconds"] for row in kept["rows"]]
    assert len(json.loads(path.read_text())["rows"]) == len(whole)

    # More of everything: only what is new runs, and only what was asked for comes back.
    ran = stop_after(0, None)
    more = evaluate(
        loaded, "niah", METHODS, [300, 320], settings=Settings(samples=4),
        results=opened(path, loaded, settings),
    )  # fmt: skip
    assert len(ran) == 2 * 1 + 2 * 4
    assert len(more) == 2 * 2 * 4 * 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "with seed 0; this run has 1"),
        ({"depths": (0.5,)}, r"with depths \[0.0, 0.111"),
        ({"chat": True}, "with chat false; this run has true"),
        ({"data": Path("/")}, "with data null; this run has"),
    ],
)
def test_a_file_of_other_settings_is_refused(
    loaded: LoadedModel, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "r.json"
    evaluate(loaded, "niah", METHODS, [256], settings=ONE, results=opened(path, loaded, ONE))
    other = Settings(**{"samples": 1, **change})
    with pytest.raises(Failure, match=f"r.json has results {words}.*: give another --out, or"):
        opened(path, loaded, other)
    assert opened(path, loaded, other, restart=True).rows == []
    assert len(opened(path, loaded, Settings(samples=9)).rows) == 20


def test_a_pattern_file_that_changed_is_another_method(loaded: LoadedModel, tmp_path: Path) -> None:
    file, path = tmp_path / "p.json", tmp_path / "r.json"
    for window in (64, 128):
        ModelPatterns.uniform(HeadPattern.a_shape(64, window), 2, 8).save(file)
        contenders = parse_contenders(f"dense,{file}")
        settings = identity(torch.float32, ONE, contenders)
        if window == 64:
            results = Results.open(path, "retrieval", settings)
            rows = evaluate(loaded, "niah", contenders, [512], settings=ONE, results=results)
            assert mean_score([row for row in rows if row.method == f"patterns({file})"]) < 1.0
        else:
            with pytest.raises(Failure, match="as that file was before it changed: give another"):
                Results.open(path, "retrieval", settings)
    # Other methods go on, and do not forget it; a new file is one more method.
    other = tmp_path / "other.json"
    ModelPatterns.uniform(HeadPattern.dense(), 2, 8).save(other)
    for methods in ("sdpa", f"{other}"):
        contenders = parse_contenders(methods)
        known = identity(torch.float32, ONE, contenders)
        results = Results.open(path, "retrieval", known)
        evaluate(loaded, "niah", contenders, [512], settings=ONE, results=results)
        with pytest.raises(Failure, match="as that file was before it changed"):
            Results.open(path, "retrieval", settings)


def test_a_file_of_another_machine_keeps_its_name(capsys: Capture, tmp_path: Path) -> None:
    """Seconds of two machines, or of other numbers of threads, are not one column."""
    path = tmp_path / "r.json"
    arguments = ("niah", "--lengths", "256", "--methods", "sdpa", "--out", str(path))
    assert run(*arguments, "--samples", "1", "--threads", "1") == 0
    record = json.loads(path.read_text())
    assert record["machine"]["threads"] == 1
    record["machine"]["cpu"] = "Abacus"
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert run(*arguments, "--samples", "2", "--threads", "1") == 0
    assert capsys.readouterr().err.startswith(f"warning: {path} was begun on another machine")
    again = json.loads(path.read_text())
    assert again["machine"] == record["machine"]
    assert again["rows"][:10] == record["rows"]
    assert len(again["rows"]) == 20


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "minference_search", "version": 1}', "\xff"]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Failure, match="is no record of an evaluation"):
        Results.open(path, "retrieval", {})
    assert path.read_bytes() == text.encode("latin-1")


def test_a_case_is_there_when_all_of_its_depths_are() -> None:
    row = Row("niah", "dense", 64, 0, 0.0, "accuracy", 1.0, "", "", 1.0, None)
    results = Results("retrieval", {})
    results.add([row])
    assert results.of_case("niah", "dense", 64, Case(0, (0.0,))) == [row]
    assert results.of_case("niah", "dense", 64, Case(0, (0.0, 1.0))) == []
    assert results.of_case("niah", "dense", 64, Case(1, (0.0,))) == []
    assert results.of_case("niah", "sdpa", 64, Case(0, (0.0,))) == []


# ---- Tables and pictures -------------------------------------------------------------------------


def row(task: str, method: str, length: int, score: float, **more: Any) -> Row:
    fields = {
        "sample": 0, "depth": None, "metric": "accuracy", "prediction": "", "answer": "",
        "seconds": 1.0, "computed_share": None,
    }  # fmt: skip
    return Row(task=task, method=method, length=length, score=score, **{**fields, **more})


def test_tables() -> None:
    rows = [
        row("ruler:vt", "dense", 4096, 0.5, seconds=8.0, computed_share=1.0),
        row("ruler:vt", "dense", 4096, 1.0, seconds=2.0, sample=1),
        row("ruler:vt", "dense", 8192, 0.25, seconds=8.0, computed_share=1.0),
        row("ruler:cwe", "dense", 4096, 0.25, seconds=3.0),
        row("ruler:vt", "a_shape(1,64)", 4096, 0.0, seconds=0.5, computed_share=0.125),
        row("pg19", "dense", 4096, 4.0, metric="perplexity"),
        row("pg19", "dense", 4096, 9.0, metric="perplexity", sample=1),
    ]
    tables = [
        [line.split() for line in table.splitlines()] for table in summary(rows).split("\n\n")
    ]
    assert [table[1] for table in tables] == [["task", "metric", "method", "4096", "8192"]] * 3
    assert tables[0][2:] == [
        ["ruler:vt", "accuracy", "dense", "75.0", "25.0"],
        ["a_shape(1,64)", "0.0", "-"],
        ["ruler:cwe", "accuracy", "dense", "25.0", "-"],
        ["pg19", "perplexity", "dense", "6", "-"],  # the root of 4 * 9
        ["ruler", "mean", "dense", "50.0", "-"],
        ["a_shape(1,64)", "-", "-"],  # one of two tasks is no mean
    ]
    assert tables[1][2:4] == [
        ["ruler:vt", "accuracy", "dense", "100.0", "100.0"],
        ["a_shape(1,64)", "12.5", "-"],
    ]
    assert tables[2][2] == ["ruler:vt", "accuracy", "dense", "2", "8"]
    assert mean_seconds(rows[:2]) == 2.0
    assert mean_seconds(rows[:1]) == 8.0


def test_needle_maps() -> None:
    rows = [
        row("niah", "dense", 4096, 1.0, depth=1.0),
        row("niah", "dense", 4096, 0.0, depth=1.0, sample=1),
        row("niah", "dense", 2048, 1.0, depth=0.0),
        row("niah", "sdpa", 2048, 0.0, depth=0.0),
        row("mid_prompt", "dense", 2048, 1.0, depth=0.25),
    ]
    dense, sdpa = needle_maps(rows)
    assert (dense.method, dense.lengths, dense.depths) == ("dense", [2048, 4096], [0.0, 1.0])
    assert dense.found[0][0] == 1.0
    assert dense.found[1][1] == 0.5
    assert math.isnan(dense.found[0][1])
    assert sdpa.found[0][0] == 0.0


# ---- The command ---------------------------------------------------------------------------------


def run(*arguments: str) -> int:
    return cli.main(["eval", *arguments, "--model", "retrieval"])


def test_command(capsys: Capture, tmp_path: Path) -> None:
    path, picture = tmp_path / "r.json", tmp_path / "n.png"
    arguments = (
        RETRIEVAL_TASKS, "--methods", "dense,a_shape(64, 128)", "--lengths", "512,300",
        "--samples", "2", "--depths", "4", "--out", str(path),
    )  # fmt: skip
    assert run(*arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 4 * 2 * 2 * 2  # a line per prompt, no bar
    assert "\r" not in captured.err
    assert captured.err.startswith("1/32 niah, 300 tokens, dense, sample 0: accuracy 1, ")
    lines = captured.out.splitlines()
    assert lines[0] == "Mean scores, %:"
    assert lines[1].split() == ["task", "metric", "method", "300", "512"]
    assert lines[2].split() == ["niah", "accuracy", "dense", "100.0", "100.0"]
    assert lines[-1] == f"Answers: {path}"
    record: dict[str, Any] = json.loads(path.read_text())
    assert len(record["rows"]) == 2 * 2 * 2 * (4 + 1 + 1 + 4)
    assert record["settings"]["dtype"] == "bfloat16"
    assert record["settings"]["depths"] == [0.0, 1 / 3, 2 / 3, 1.0]
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert {row["method"] for row in record["rows"]} == {"dense", "a_shape(64,128)"}

    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    assert run(*arguments, "--plot", str(picture)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # all is there
    assert captured.out.splitlines()[:3] == lines[:3]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_after_ctrl_c(
    capsys: Capture, tmp_path: Path, stop_after: Callable[..., list[int]]
) -> None:
    path = tmp_path / "r.json"
    arguments = ("niah", "--lengths", "256", "--samples", "3", "--out", str(path))
    stop_after(2, KeyboardInterrupt())
    assert run(*arguments) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last == (
        f"interrupted; {path} has 20 answers, 20 of them new: the same command without --restart "
        "goes on"
    )
    assert len(json.loads(path.read_text())["rows"]) == 20
    ran = stop_after(0, None)
    assert run(*arguments) == 0
    assert len(ran) == 2 * 3 - 2
    assert run(*arguments, "--restart") == 0
    assert len(ran) == 2 * 3 - 2 + 2 * 3

    capsys.readouterr()
    stop_after(0, KeyboardInterrupt())
    assert run("niah", "--lengths", "256") == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing is kept without --out\n")


def test_a_terminal_gets_a_bar(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    evaluate(loaded, "niah", "dense", [256], settings=ONE, show_progress=True)
    text = terminal.getvalue()
    assert "niah, 256 tokens, dense, sample 0, layer " in text
    assert "1/1 niah, 256 tokens, dense, sample 0: accuracy 1, " in text
    assert all(not module._forward_pre_hooks for module in loaded.model.modules())


def test_list(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["eval", "--list"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name in (*RETRIEVAL_TASKS.split(","), "ruler[:TASK]", "infinitebench[:TASK]", "pg19"):
        assert f"\n{name}\n" in f"\n{text}"
    assert max(map(len, text.splitlines())) <= 100


def test_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["eval", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 110
    examples = [
        line.strip() for line in text.split("examples:\n")[1].splitlines() if "--list" not in line
    ]
    assert examples
    for line in examples:  # the tasks of every example are tasks
        assert line.startswith("minference eval ")
        assert parse_tasks(line.split()[2])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["haystack"], "'haystack' is no task; `minference eval --list` describes them: niah,"),
        (["ruler:vtt"], "'ruler:vtt' is no task; ruler has niah_single_1,"),
        (["niah:1"], "'niah:1' is no task: niah is only one"),
        (["lm_eval"], "'lm_eval' needs the name of a task, as in lm_eval:wikitext"),
        (["niah", "--methods", "vertical_slas(1,2)"], "'vertical_slas(1,2)' is no method"),
        (["niah", "--methods", "a_shape(-1,2)"], "a_shape, sink: found -1"),
        (["niah", "--methods", "/no/such.json"], "/no/such.json"),
        (["niah", "--lengths", "4096,x"], "'x' is not a whole number >= 2"),
        (["niah", "--samples", "0"], "'0' is not a whole number >= 1"),
        (["niah", "--data", "/no/such/folder"], "there is no file or folder /no/such/folder"),
        (["niah", "--out", "/no/such/folder/r.json"], "/no/such/folder is not a folder"),
        (["kv_retrieval", "--plot", "n.png"], "--plot draws niah, which is not among the tasks"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["niah", "--lengths", "40"], "niah with 40 tokens: length: found 40, allowed is 51.."),
        (["niah", "--lengths", "64", "--depths", "30"], "niah with 64 tokens: "),
        (["mid_prompt", "--lengths", "64"], "mid_prompt with 64 tokens: length: found 64"),
        (["ruler:vt"], "ruler:vt needs a model with a tokenizer; retrieval has none, and answers"),
        (["pg19"], "pg19 needs texts: give --data a .txt file"),
        (["infinitebench:passkey"], "infinitebench:passkey needs passkey.jsonl in the folder of"),
        (["niah", "--device", "cuda:77"], "--device is cuda:77"),
        (["niah", "--device", "gpu"], "--device is gpu; it must be cpu, cuda or"),
        (["niah", "--device", "meta"], "--device is meta; it must be cpu, cuda or"),
        (["niah", "--chat"], "--chat: retrieval has no tokenizer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done(capsys: Capture, arguments: list[str], words: str) -> None:
    if arguments[-1].startswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_patterns_of_another_model(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    ModelPatterns.uniform(HeadPattern.dense(), 32, 32).save(path)
    assert run("niah", "--methods", str(path)) == 1
    assert "has 32 layers with 32 heads; retrieval has 2 with 8" in capsys.readouterr().err


def test_an_error_after_hours_says_what_is_kept(
    capsys: Capture, tmp_path: Path, stop_after: Callable[..., list[int]]
) -> None:
    path = tmp_path / "r.json"
    stop_after(1, RuntimeError("no memory"))
    assert run("niah", "--lengths", "256", "--out", str(path)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("minference: error: niah, 256 tokens, dense: no memory; ")
    assert last.endswith(
        "has 10 answers, 10 of them new: the same command without --restart goes on"
    )
