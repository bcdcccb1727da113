"""python -m minference_ext.demo: its table, its JSON and its pictures say what was run, bad
arguments end with code 2 and a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import demo
from minference_ext.demo.measure import Result
from minference_ext.demo.methods import METHODS
from minference_ext.demo.pictures import crossovers, shorter_lengths


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """Lines of stdout, and stderr, of a run without pictures."""
    assert demo.main([*arguments, "--no-plots"]) == 0
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err


def rows_of(lines: list[str]) -> dict[str, list[str]]:
    """Cells of the table by method; cells are at least two spaces apart."""
    head = next(index for index, line in enumerate(lines) if line.startswith("method"))
    table = lines[head : lines.index("", head)]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table]
    assert {len(row) for row in cells} == {10}
    return {row[0]: row for row in cells}


def test_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    lines, err = run(capsys, "--length", "4096", "--repeat", "2", "--json", str(path))
    assert "\r" not in err  # no progress bar without a terminal
    assert "\x1b" not in err
    assert err.count("\n") == 4 * 3  # a line per prefill: a warm-up and two of each method

    rows = rows_of(lines)
    assert list(rows) == ["method", *METHODS]
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["length"] == 4096
    assert record["dtype"] == "bfloat16"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["kernel"] in lines[1]
    by_method = {result["method"]: result for result in record["results"]}
    assert list(by_method) == list(METHODS)
    for name, result in by_method.items():
        found = f"{sum(result['retrieved'])}/10"
        assert rows[name][8] == found
        assert len(result["seconds"]) == len(result["attention_seconds"]) == 2
        assert all(
            0 < attention < total
            for attention, total in zip(result["attention_seconds"], result["seconds"], strict=True)
        )
        assert 0 < result["attended_share"] <= result["computed_share"] < 1.1

    dense, a_shape = by_method["dense"], by_method["a_shape"]
    assert dense["retrieved"] == [True] * 10
    assert dense["speedup"] == dense["attention_speedup"] == 1
    assert dense["dense_heads"] is None
    assert by_method["vertical_slash"]["retrieved"] == [True] * 10
    assert by_method["per_head"]["retrieved"] == [True] * 10
    assert by_method["per_head"]["max_logit_difference"] < 1
    # sink 128, window 512: the first needle and the last two at most.
    assert a_shape["retrieved"][0]
    assert a_shape["retrieved"][-1]
    assert not any(a_shape["retrieved"][1:8])
    assert a_shape["max_logit_difference"] > 10
    assert a_shape["computed_share"] < 0.5
    assert a_shape["num_heads"] == 16
    assert lines[-1].startswith("per_head finds all 10 needles computing ")


def test_a_short_prompt_is_computed_densely(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run(capsys, "--length", "256", "--method", "vertical_slash", "--dtype", "float32")
    assert rows_of(lines)["vertical_slash"][6:9] == ["100.0%", "16/16", "10/10"]
    assert lines[-1] == "vertical_slash: at this length dense is cheaper in every head."


def test_methods(capsys: pytest.CaptureFixture[str]) -> None:
    lines, _ = run(capsys, "--length", "300", "--method", "per_head,a_shape", "--no-dense")
    rows = rows_of(lines)
    assert list(rows) == ["method", "a_shape", "per_head"]
    assert rows["a_shape"][3] == rows["a_shape"][5] == rows["a_shape"][9] == "-"
    lines, _ = run(capsys, "--length", "300", "--method", "a_shape", "--method", "per_head")
    assert list(rows_of(lines)) == ["method", "dense", "a_shape", "per_head"]
    lines, _ = run(capsys, "--length", "300", "--method", "dense")
    assert list(rows_of(lines)) == ["method", "dense"]


def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    folder, path = tmp_path / "new" / "pictures", tmp_path / "demo.json"
    assert demo.main(["--length", "1024", "--plots", str(folder), "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.err.splitlines()[-3:]] == [
        f"pictures, {length} tokens" for length in (128, 256, 512)
    ]
    names = ["retrieval.png", "attention_roles.png", "attention_maps.png", "attention_time.png"]
    lines = captured.out.splitlines()
    listed = lines[lines.index("Pictures:") + 1 :]
    assert [line.split()[0] for line in listed] == [str(folder / name) for name in names]
    for name in names:
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < 200_000

    record: dict[str, Any] = json.loads(path.read_text())
    assert record["pictures"] == [str(folder / name) for name in names]
    assert [entry["length"] for entry in record["shorter"]] == shorter_lengths(1024)
    for entry in record["shorter"]:
        by_method = {result["method"]: result for result in entry["results"]}
        assert list(by_method) == list(METHODS)
        for name in ("dense", "vertical_slash", "per_head"):
            assert by_method[name]["retrieved"] == [True] * 10
        # The sizes are those of 1024 tokens at every length: sink 32, window 128.
        assert all(by_method["a_shape"]["retrieved"]) == (entry["length"] <= 128)
    assert list(record["crossovers"]) == list(METHODS[1:])
    heads = {(head["layer"], head["head"]): head for head in record["heads"]}
    assert len(heads) == 16
    assert heads[0, 1]["role"] == "previous token"
    assert heads[1, 6]["role"] == "induction"
    for place, head in heads.items():
        assert head["attended_share"] < 0.5
        # The needles are found. Words that only fillers ask for, an estimation may miss.
        assert head["recall_of_questions"] > 0.99
        assert head["recall"] > (0.99 if place != (1, 6) else 0.5)


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minference_ext.plots.is_available", lambda: False)
    assert demo.main(["--length", "300", "--method", "per_head"]) == 0
    assert "\nNo pictures: pictures need matplotlib: pip install" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        demo.main(["--length", "300", "--plots", "pictures"])
    assert "--plots: pictures need matplotlib: pip install" in capsys.readouterr().err


def test_crossovers() -> None:
    def row(method: str, seconds: float) -> Result:
        return Result(method, "", attention_seconds=[seconds])

    by_length = {1024: [row("dense", 1.0), row("a_shape", 2.1)], 2048: [row("dense", 4.2)]}
    by_length[2048].append(row("a_shape", 2.0))
    # From 1 / 2.1 to 2.1: 1.05 lies at the same share of the way on both axes.
    share = math.log(1.05 * 2.1) / math.log(2.1 * 2.1)
    assert crossovers(by_length) == {"a_shape": pytest.approx(1024 * 2**share)}
    assert crossovers({length: rows[1:] for length, rows in by_length.items()}) == {}


def test_lengths_of_the_pictures() -> None:
    assert shorter_lengths(32768) == [256 << power for power in range(7)]
    assert shorter_lengths(300) == [150]
    assert shorter_lengths(200) == []


def test_the_seed_changes_the_prompt_and_threads_are_restored(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = torch.get_num_threads()
    arguments = ("--length", "300", "--method", "per_head", "--threads", "1", "--seed", "7")
    lines, _ = run(capsys, *arguments)
    assert lines[0].endswith("threads: 1")
    assert rows_of(lines)["per_head"][8] == "10/10"
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--length", "20"], "length: found 20, allowed is 51..1048576"),
        (["--length", "2000000"], "length: found 2000000"),
        (["--length", "many"], "'many' is not a whole number >= 1"),
        (["--method", "dense,vs"], "'vs' is none of dense, a_shape, vertical_slash, per_head"),
        (["--method", "dense", "--no-dense"], "--no-dense leaves no method"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--repeat", "0"], "'0' is not a whole number >= 1"),
        (["--threads", "-1"], "'-1' is not a whole number >= 1"),
        (["--seed", "-1"], "'-1' is not a whole number >= 0"),
        (["--json", "/no/such/folder/demo.json"], "/no/such/folder is not a folder"),
        (["--plots", "/dev/null/x"], "--plots: /dev/null/x cannot be made a folder"),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        demo.main(arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_kernel_this_machine_lacks_is_a_bad_argument(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "abacus")
    with pytest.raises(SystemExit) as exit_info:
        demo.main(["--length", "300"])
    assert exit_info.value.code == 2
    assert "abacus" in capsys.readouterr().err


def test_ctrl_c_is_tidy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "measure", interrupted)
    assert demo.main(["--length", "300", "--no-plots"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "\ninterrupted\n"
