"""python -m minference_ext.demo: its table and its JSON say what was run, bad arguments end with
code 2 and a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import demo


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """Lines of stdout, and stderr."""
    assert demo.main(arguments) == 0
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
    assert list(rows) == ["method", *demo.METHODS]
    record: dict[str, Any] = json.loads(path.read_text())
    assert record["length"] == 4096
    assert record["dtype"] == "bfloat16"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["kernel"] in lines[1]
    by_method = {result["method"]: result for result in record["results"]}
    assert list(by_method) == list(demo.METHODS)
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

    monkeypatch.setattr(demo, "_measure", interrupted)
    assert demo.main(["--length", "300"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "\ninterrupted\n"
