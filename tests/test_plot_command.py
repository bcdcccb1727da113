"""minference plot: every subject draws what a model or a file holds, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.plots import attention_maps, density, retrieval, scores, times
from minference_ext.plots.canvas import percent

from . import records, text_model

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
pytest.importorskip("transformers", reason="models need transformers")

Capture = pytest.CaptureFixture[str]
Written = Callable[[Any], Path]

SUBJECTS = [
    "attention",
    "observations",
    "patterns",
    "density",
    "times",
    "breakdown",
    "retrieval",
    "scores",
]
MAP = ("plot", "attention", "--model", "retrieval", "--length", "256", "--dtype", "float32")


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes a record, or text as it is, to a file."""

    def write(content: Any) -> Path:
        path = tmp_path / f"record{len(list(tmp_path.iterdir()))}.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the drawing functions are given, instead of a picture."""
    drawn: list[dict[str, Any]] = []
    for module in (attention_maps, density, retrieval, scores, times):
        name = f"draw_{module.__name__.rpartition('.')[2]}"

        def draw(path: Path, *content: Any, name: str = name, **options: Any) -> None:
            path.write_bytes(b"drawn")
            drawn.append({"name": name, "content": content, **options})

        monkeypatch.setattr(f"minference_ext.plots.{name}", draw)
    return drawn


def run(capsys: Capture, *arguments: object) -> str:
    """What a command that succeeds prints."""
    assert cli.main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def fails(capsys: Capture, code: int, *arguments: object) -> str:
    """The sentence of a command that ends with this code, and draws nothing."""
    try:
        found: object = cli.main(list(map(str, arguments)))
    except SystemExit as error:
        found = error.code
    assert found == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("minference")
    assert captured.err.count("\n") == 1
    return captured.err


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("subject", [None, *SUBJECTS])
def test_help(capsys: Capture, subject: str | None) -> None:
    command = ["plot"] if subject is None else ["plot", subject]
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert " ".join(["minference", *command]) in text.split("examples:\n")[1]
    assert max(map(len, text.splitlines())) <= 110


# ---- From files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "record", "options"),
    [
        ("density", records.search(), ()),
        ("times", records.prefill(), ()),
        ("times", records.attention(), ()),
        ("breakdown", records.prefill(), ()),
        ("retrieval", records.evaluation(), ("--task", "niah")),
        ("scores", records.evaluation(), ("--by", "length")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_of_records(
    capsys: Capture, written: Written, tmp_path: Path, subject: str, record: Any, options: Any
) -> None:
    picture = tmp_path / "picture.png"
    text = run(capsys, "plot", subject, written(record), "--out", picture, *options)
    assert text == f"Picture: {picture}\n"
    assert is_picture(picture)


def test_patterns(capsys: Capture, tmp_path: Path) -> None:
    path, picture = tmp_path / "patterns.json", tmp_path / "picture.png"
    layer = [HeadPattern.vertical_slash(30, 800), HeadPattern.a_shape(100, 800)]
    ModelPatterns([layer] * 3, model="some$body/model").save(path)
    assert run(capsys, "plot", "patterns", path, "--out", picture) == f"Picture: {picture}\n"
    assert is_picture(picture)


def test_density_is_of_the_heads(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    run(capsys, "plot", "density", written(records.search(2, 2)), "--out", tmp_path / "x.png")
    heads, title = figures[0]["content"]
    assert heads == [
        (0, pytest.approx(0.1), pytest.approx(0.9)),
        (0, pytest.approx(0.11), pytest.approx(0.8999)),
        (1, pytest.approx(0.2), pytest.approx(0.899)),
        (1, 1.0, 1.0),  # a dense head computes a little beyond the diagonal
    ]
    assert title == f"Patterns of {records.MODEL}"


def test_times_have_baselines_and_crossovers(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    run(capsys, "plot", "times", written(records.prefill()), "--out", tmp_path / "x.png")
    run(capsys, "plot", "times", written(records.attention()), "--out", tmp_path / "x.png")
    (dense, sparse), title = figures[0]["content"]
    assert title == f"Time of a prefill: {records.MODEL}, bfloat16"
    assert (dense.method, dense.is_dense, dense.crossover) == ("PyTorch SDPA", True, None)
    assert (sparse.method, sparse.is_dense) == ("vertical_slash(30,800)", False)
    assert sparse.lengths == [1024, 4096, 16384]
    assert sparse.seconds == [0.5, 2.0, 8.0]
    assert sparse.speedups == [0.125, 0.5, 2.0]
    assert sparse.crossover == 8192
    curves, title = figures[1]["content"]
    assert [curve.method for curve in curves] == ["PyTorch SDPA", "dense (ours)", "a_shape(16,64)"]
    assert [curve.is_dense for curve in curves] == [True, True, False]
    assert title == (
        "Time of attention in one layer: 8 query heads, 2 kv heads, head_dim 128, float32"
    )


def test_a_crossover_beyond_the_lengths_is_drawn_at_their_end(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    """A file's numbers need not fit each other."""
    for point in (1e9, 1.0):
        record = records.prefill()
        record["crossovers"] = {"vertical_slash(30,800)": point}
        run(capsys, "plot", "times", written(record), "--out", tmp_path / "x.png")
    assert [figure["content"][0][1].crossover for figure in figures] == [16384, 1024]


def test_times_of_some_layers_say_so(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    record = changed(records.prefill(), num_layers=2, whole_num_layers=32)
    run(capsys, "plot", "times", written(record), "--out", tmp_path / "x.png")
    _, title = figures[0]["content"]
    assert title == f"Time of a prefill: {records.MODEL}, 2 of 32 layers, bfloat16"


def test_retrieval_is_the_mean_of_the_samples(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    record = records.evaluation()
    record["rows"].append(records.row(depth=0.25, score=0.5))
    run(capsys, "plot", "retrieval", written(record), "--out", tmp_path / "x.png")
    results, title = figures[0]["content"]
    assert title == f"niah: {records.MODEL}"
    dense, lines, _ = results
    assert dense.lengths == [4096, 8192]
    assert dense.depths == [0.0, 0.25, 0.5, 1.0]
    assert dense.found[0] == [1.0, 0.5, 1.0, 1.0]
    assert lines.found[0][0] == 1
    assert lines.found[0][2] == 0.5
    assert lines.found[1][2] == 0
    assert str(lines.found[0][1]) == "nan"  # nobody asked there
    assert dense.is_mean
    assert lines.is_mean


def test_scores_are_means_by_metric(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    path = written(records.evaluation())
    run(capsys, "plot", "scores", path, "--out", tmp_path / "x.png")
    methods, scores, _ = figures[0]["content"]
    assert methods == ["dense", "vertical_slash(30,800)", "a_shape(64,512)"]
    assert [of.name for of in scores] == [
        "niah (accuracy)",
        "tracking (accuracy)",
        "mean (accuracy)",
        "pg19 (perplexity)",
    ]
    niah, tracking, mean, perplexity = scores
    assert niah.values == pytest.approx([1, 9 / 12, 9 / 12])
    assert tracking.values == pytest.approx([1, 1 / 2, 1 / 3])
    assert mean.values == pytest.approx([1, 5 / 8, 13 / 24])
    assert perplexity.values == [4, 5, 6]
    assert [of.is_high_better for of in scores] == [True, True, True, False]
    run(capsys, "plot", "scores", path, "--by", "length", "--out", tmp_path / "x.png")
    _, scores, _ = figures[1]["content"]
    assert [of.name for of in scores if "accuracy" in of.name] == [
        "4K (accuracy)",
        "8K (accuracy)",
        "mean (accuracy)",
    ]
    assert scores[0].values == pytest.approx([1, 5.5 / 7, (5 + 1 / 3) / 7])


def test_methods_are_compared_by_what_all_were_asked(
    capsys: Capture, written: Written, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    """An evaluation that ended early: the second method has neither the longer prompts, which are
    harder, nor the second task."""
    rows = [
        records.row(length=4096),
        records.row(length=8192, score=0.0),
        records.row(length=4096, task="tracking", score=0.5),
        records.row(length=4096, method="top_k(3)"),
    ]
    path = written(changed(records.evaluation(), rows=rows))
    run(capsys, "plot", "scores", path, "--out", tmp_path / "x.png")
    run(capsys, "plot", "scores", path, "--by", "length", "--out", tmp_path / "x.png")
    by_task, by_length = (
        {of.name: list(map(str, of.values)) for of in figure["content"][1]} for figure in figures
    )
    assert by_task == {
        "niah at 4K": ["1.0", "1.0"],
        "tracking": ["0.5", "nan"],
        "mean (accuracy)": ["0.75", "nan"],
    }
    assert by_length == {
        "4K, niah": ["1.0", "1.0"],
        "8K": ["0.0", "nan"],
        "mean (accuracy)": ["0.5", "nan"],
    }
    rows[3]["length"] = 2048  # nothing in common
    path = written(changed(records.evaluation(), rows=rows[:2] + rows[3:]))
    run(capsys, "plot", "scores", path, "--out", tmp_path / "x.png")
    (scores,) = figures[2]["content"][1]
    assert (scores.name, scores.values) == ("niah, unequal lengths", [0.5, 1.0])


def changed(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**record, **values}


@pytest.mark.parametrize(
    ("subject", "content", "options", "words"),
    [
        ("density", "{", (), "it is no JSON"),
        ("density", "[]", (), "found a list of 0; it must be a record: minference_search"),
        ("density", {}, (), "format: found nothing; readable are minference_search"),
        ("density", records.evaluation(), (), "found minference_evaluation; this picture is of "),
        ("breakdown", records.attention(), (), "this picture is of minference_prefill"),
        ("times", records.search(), (), "of minference_prefill and minference_attention"),
        (
            "breakdown",
            records.prefill(has_parts=False),
            (),
            "none has a breakdown; minference bench prefill --breakdown measures it",
        ),
        ("scores", changed(records.evaluation(), rows=[]), (), "rows: found none"),
        (
            "retrieval",
            changed(records.evaluation(), rows=[records.row()]),
            (),
            "none of 1 has a depth and a score in 0 .. 1",
        ),
        ("retrieval", records.evaluation(), ("--task", "qa"), "found 'qa'; the file has niah, tr"),
        (
            "retrieval",
            records.evaluation(),
            ("--task", "tracking"),
            "'tracking' has no rows with a depth, or scores beyond 0 .. 1",
        ),
        (
            "retrieval",
            changed(
                records.evaluation(),
                rows=[records.row(depth=0.5), records.row(task="other", depth=0.5)],
            ),
            (),
            "--task is needed: the file has niah, other",
        ),
        (
            "retrieval",
            changed(records.evaluation(), rows=[records.row(depth=0.5, score=37.0)]),
            (),
            "none of 1 has a depth and a score in 0 .. 1",
        ),
    ],
)
def test_what_cannot_be_drawn(
    capsys: Capture,
    written: Written,
    tmp_path: Path,
    subject: str,
    content: Any,
    options: tuple[str, ...],
    words: str,
) -> None:
    path, picture = written(content), tmp_path / "picture.png"
    sentence = fails(capsys, 1, "plot", subject, path, "--out", picture, *options)
    assert words in sentence
    assert str(path) in sentence
    assert not picture.exists()


@pytest.mark.parametrize("subject", SUBJECTS[2:])
def test_files_that_are_missing(capsys: Capture, tmp_path: Path, subject: str) -> None:
    path = tmp_path / "missing.json"
    assert str(path) in fails(capsys, 1, "plot", subject, path, "--out", tmp_path / "x.png")


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(
    ("out", "words"),
    [("x.svg", "'x.svg' does not end in .png"), ("/no/such/x.png", "/no/such is not a folder")],
)
def test_pictures_that_cannot_be_written(
    capsys: Capture, subject: str, out: str, words: str
) -> None:
    assert words in fails(capsys, 2, "plot", subject, "--out", out)


def test_without_matplotlib(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minference_ext.command_line.is_available", lambda: False)
    sentence = fails(capsys, 2, "plot", "density", "x.json", "--out", "x.png")
    assert "--out: pictures need matplotlib: pip install matplotlib" in sentence


# ---- From a model --------------------------------------------------------------------------------


def test_attention(capsys: Capture, tmp_path: Path) -> None:
    """The head that looks for a word of the question, without diagonals to do so."""
    picture, path = tmp_path / "map.png", tmp_path / "map.json"
    command = (*MAP, "--layer", 1, "--head", "6,0", "--method", "a_shape(16,64)", "--out", picture)
    text = run(capsys, *command, "--json", path)
    assert is_picture(picture)
    record = json.loads(path.read_text())
    assert record["method"] == "a_shape(16,64)"
    assert record["length"] == 256
    assert record["machine"]["threads"] == torch.get_num_threads()
    induction, local = record["heads"]
    assert [(head["layer"], head["head"]) for head in record["heads"]] == [(1, 6), (1, 0)]
    pairs = sum(min(query + 1, 64) + min(max(0, query - 63), 16) for query in range(256))
    assert induction["attended_share"] == pytest.approx(pairs / (256 * 257 / 2))
    assert local["recall"] > 0.99  # a window of 64 holds it
    # Half of them look for needles, most of which lie between sink and window.
    assert 0.5 < induction["recall_of_last_queries"] < 0.75
    for head in record["heads"]:
        numbers = (head["attended_share"], head["recall"], head["recall_of_last_queries"])
        shares = [percent(number) for number in numbers]
        assert ["1", str(head["head"]), *shares] in [line.split() for line in text.split("\n")]
    assert "attends every pair" not in text
    assert json.loads(run(capsys, *command, "--json", "-")) == record


def test_attention_by_a_file_of_patterns(
    capsys: Capture, tmp_path: Path, figures: list[dict[str, Any]]
) -> None:
    """Each map names the pattern of its head."""
    path = tmp_path / "patterns.json"
    layer = [HeadPattern.a_shape(16, 16 + head) for head in range(8)]
    ModelPatterns([layer] * 2).save(path)
    command = (*MAP, "--layer", 1, "--head", "3,5", "--out", tmp_path / "map.png")
    run(capsys, *command, "--method", path)
    maps = figures[0]["content"][0]
    assert [head.pattern for head in maps] == ["a_shape(16,19)", "a_shape(16,21)"]


@pytest.mark.usefixtures("figures")
def test_attention_of_every_pair(capsys: Capture, tmp_path: Path) -> None:
    """A picture of it shows nothing of the method, and the text says why."""
    command = (*MAP, "--layer", 0, "--head", "1,3", "--out", tmp_path / "map.png")
    text = run(capsys, *command, "--method", "vertical_slash(1000,6096)")
    assert "vertical_slash(1000,6096) attends every pair of heads 1, 3 here" in text
    assert "attends every pair" not in run(capsys, *command, "--method", "dense")


def test_attention_of_a_method_of_its_own_way(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    text = run(
        capsys,
        *(*MAP, "--layer", 0, "--head", 1, "--method", "infllm(64,64,2)"),
        *("--out", tmp_path / "map.png", "--json", path),
    )
    assert "infllm(64,64,2,128,512,4) attends in a way of its own" in text
    (head,) = json.loads(path.read_text())["heads"]
    assert head["attended_share"] is head["recall"] is head["recall_of_last_queries"] is None


def test_observations(capsys: Capture, tmp_path: Path) -> None:
    picture, path = tmp_path / "columns.png", tmp_path / "columns.json"
    command = ("plot", "observations", "--model", "retrieval", "--length", 256, "--out", picture)
    assert not cli.main(list(map(str, (*command, "--json", path))))
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "other prompt: layer 0",
        "other prompt: layer 1",
        "prompt: layer 0",
        "prompt: layer 1",
    ]
    assert is_picture(picture)
    record = json.loads(path.read_text())
    assert (record["format"], record["version"]) == ("minference_observations", 1)
    assert [prompt["length"] for prompt in record["prompts"]] == [256, 256]
    assert len(record["heads"]) == 16
    assert record["columns"] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    by_place = {(head["layer"], head["head"]): head for head in record["heads"]}
    assert by_place[0, 3]["coverage"][0] > 0.99  # a head that attends the first key
    assert by_place[0, 0]["coverage"][0] < 0.1  # one that attends its neighbourhood
    for head in record["heads"]:
        assert [head["coverage"][-1], head["reused"][-1]] == pytest.approx([1, 1], abs=1e-4)
        for own, reused in zip(head["coverage"], head["reused"], strict=True):
            assert reused <= own + 1e-6
    means = [sum(head[name][3] for head in record["heads"]) / 16 for name in ("coverage", "reused")]
    assert (
        f"The best 8 of 256 columns hold {means[0]:.1%} of the attention, mean over 16 heads; as "
        f"many columns that were the best of another prompt hold {means[1]:.1%}."
    ) in captured.out
    report = tmp_path / "report.html"
    run(capsys, "report", path, "--out", report)
    assert "The best 8 of 256 columns" in report.read_text()


def test_a_checkpoint_and_a_text(capsys: Capture, tmp_path: Path) -> None:
    folder = text_model.save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the special magic words are hidden on the hill. " * 40, encoding="utf-8")
    shared = ("--model", folder, "--text", text, "--length", 128)
    picture = tmp_path / "picture.png"
    printed = run(capsys, "plot", "attention", *shared, "--layer", 1, "--head", 2, "--out", picture)
    assert "text.txt, part 1: 128 tokens" in printed
    assert is_picture(picture)
    run(capsys, "plot", "observations", *shared, "--out", picture)
    capsys.readouterr()
    too_long = (*shared[:-1], 4096, "--out", tmp_path / "x.png")
    assert cli.main(list(map(str, ("plot", "observations", *too_long)))) == 1
    assert "2 prompts of 4096 tokens need" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (2, ("--layer", 2, "--head", 0), "--layer: found 2; retrieval has 0..1"),
        (2, ("--layer", 0, "--head", "0,8"), "--head: found 8; retrieval has 0..7"),
        (2, ("--layer", 0, "--head", "a"), "'a' is not a whole number >= 0"),
        (2, ("--layer", -1, "--head", 0), "'-1' is not a whole number >= 0"),
        (2, ("--layer", 0, "--head", 0, "--method", "stripes"), "'stripes' is no method"),
        (2, ("--layer", 0, "--head", 0, "--length", 63), "'63' is not a whole number >= 64"),
        (2, ("--layer", 0), "required: --head"),
        (2, ("--layer", 0, "--head", 0, "--text", "x.txt"), "--text: there is no file x.txt"),
        (1, ("--layer", 0, "--head", 0, "--text", __file__), "retrieval has no tokenizer"),
        (1, ("--layer", 0, "--head", 0, "--model", "retrieval:x"), "hops must be a whole number"),
        (1, ("--layer", 0, "--head", 0, "--model", "/no/such"), "there is no folder /no/such"),
    ],
)
def test_models_and_heads_that_are_not_there(
    capsys: Capture, tmp_path: Path, code: int, options: tuple[object, ...], words: str
) -> None:
    picture = tmp_path / "picture.png"
    assert words in fails(capsys, code, *MAP, *options, "--out", picture)
    assert not picture.exists()
