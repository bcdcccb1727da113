"""Methods as text, and the command that lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.methods import (
    METHODS,
    Method,
    by_name,
    of_pattern,
    parameters,
    parse,
    parse_list,
)

from tests.layer_check import random_layer

Capture = pytest.CaptureFixture[str]

WITHOUT_FILE = [method for method in METHODS if method.name != "patterns"]
NAMES = [
    *("dense", "a_shape", "streaming_llm", "tri_shape", "triangle_mix", "vertical_slash"),
    *("vertical_slash_per_chunk", "block_sparse", "only_vertical", "only_slash", "static"),
    *("static_block_sparse", "streaming_llm_dilated", "streaming_llm_strided", "infllm"),
    *("flexprefill", "xattention", "top_k", "vertical_slash_by_recall", "patterns"),
]


# ---- Text ----------------------------------------------------------------------------------------


def test_all_methods_are_listed() -> None:
    assert sorted(by_name()) == sorted(NAMES)


@pytest.mark.parametrize("method", WITHOUT_FILE, ids=lambda method: method.name)
def test_defaults_and_text_round_trip(method: type[Method]) -> None:
    default = method()
    values = [str(parameter.default) for parameter in parameters(method)]
    text = f"{method.name}({','.join(values)})" if values else method.name
    assert str(default) == text
    again = parse(text)
    assert type(again) is method
    assert str(again) == text
    # One that learns from prompts is itself alone: two would share what only one has learned.
    assert (again == default) == (not method.has_memory)
    assert parse(method.name) != parse("a_shape(1,1)")
    assert method.summary.endswith(".")
    assert method.source
    assert method.__doc__
    assert not method.__doc__.startswith(method.__name__)  # as dataclass writes it for want of one


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (" vertical_slash ( 30 , 800 ) ", "vertical_slash(30,800)"),
        ("vertical_slash(slash_size=7)", "vertical_slash(1000,7)"),
        ("vertical_slash( slash_size = 7 , vertical_size = 3 )", "vertical_slash(3,7)"),
        ("vertical_slash(3,slash_size=7)", "vertical_slash(3,7)"),
        ("vertical_slash(3)", "vertical_slash(3,6096)"),
        ("vertical_slash()", "vertical_slash(1000,6096)"),
        ("vertical_slash(3,)", "vertical_slash(3,6096)"),
        ("dense", "dense"),
        ("dense()", "dense"),
        ("flexprefill(gamma=0.5,max_budget=None)", "flexprefill(0.5,0.1,None,None,128)"),
        ("flexprefill(gamma=1)", "flexprefill(1.0,0.1,None,None,128)"),
        ("flexprefill(min_budget=1024)", "flexprefill(0.9,0.1,1024,None,128)"),
        ("flexprefill(gamma=0.5,0.3)", "flexprefill(0.5,0.3,None,None,128)"),
        ("infllm(topk=2)", "infllm(128,4096,2,128,512,4)"),
    ],
)
def test_spellings(text: str, method: str) -> None:
    assert str(parse(text)) == method


def test_lists() -> None:
    text = "dense, vertical_slash(30,800),a_shape(sink=1, window=2) ,static(1,2)"
    found = [str(method) for method in parse_list(text)]
    assert found == ["dense", "vertical_slash(30,800)", "a_shape(1,2)", "static(1,2)"]
    with pytest.raises(ValueError, match=r"'' is no method"):
        parse_list("dense,")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"'' is no method; `minference methods` describes them: dense, a_shape, .*\.json"),
        ("Dense", r"'Dense' is no method"),
        ("vertical_slash(1,2", r"'vertical_slash\(1,2' is no method"),
        ("vertical-slash", r"is no method"),
        ("vertical_slash(1,2,3)", r"found 3 values; it takes vertical_size, slash_size"),
        ("dense(3)", r"dense: found 1 values; it takes none"),
        ("dense(size=3)", r"dense: found 'size'; it takes nothing"),
        ("a_shape(sinks=3)", r"a_shape: found 'sinks'; it takes sink, window"),
        ("a_shape(1,sink=3)", r"a_shape: found sink twice"),
        ("a_shape(1.5)", r"a_shape, sink: found '1.5'; it must be int"),
        ("a_shape(None)", r"a_shape, sink: found 'None'; it must be int"),
        ("a_shape(-1)", r"a_shape, sink: found -1; it must be a whole number >= 0"),
        ("a_shape(1,-2)", r"a_shape, window: found -2; it must be a whole number >= 0"),
        ("tri_shape(last=-1)", r"tri_shape, last: found -1"),
        ("triangle_mix(-1)", r"triangle_mix, starting_layer: found -1"),
        ("vertical_slash(1,-1)", r"vertical_slash, slash_size: found -1"),
        ("block_sparse(0)", r"block_sparse, top_k: found 0; it must be a whole number >= 1"),
        (
            "vertical_slash_per_chunk(estimate_every=100)",
            r"estimate_every: found 100; it must be a positive multiple of 64",
        ),
        ("only_vertical(-1)", r"only_vertical, vertical_size: found -1"),
        ("only_slash(-1)", r"only_slash, slash_size: found -1"),
        ("static(-1)", r"static, vertical_size: found -1"),
        ("static_block_sparse(0)", r"static_block_sparse, top_k: found 0"),
        ("streaming_llm_dilated(dilation=0)", r"dilation: found 0; it must be a whole number >= 1"),
        ("streaming_llm_dilated(sink=-1)", r"streaming_llm_dilated, sink: found -1"),
        ("streaming_llm_strided(local=-1)", r"streaming_llm_strided, local: found -1"),
        ("streaming_llm_strided(dilation=0)", r"streaming_llm_strided, dilation: found 0"),
        ("infllm(n_init=32)", r"infllm, n_init: found 32; it must be a multiple of 64, at least 0"),
        (
            "infllm(n_local=0)",
            r"infllm, n_local: found 0; it must be a multiple of 64, at least 64",
        ),
        ("infllm(block_size=96)", r"infllm, block_size: found 96"),
        ("infllm(exec_block_size=100)", r"infllm, exec_block_size: found 100"),
        ("infllm(topk=-1)", r"infllm, topk: found -1"),
        (
            "infllm(repr_topk=0)",
            r"repr_topk: found 0; it must be a whole number in 1\.\.block_size",
        ),
        ("infllm(repr_topk=129)", r"in 1\.\.block_size \(128\)"),
        ("flexprefill(gamma=x)", r"flexprefill, gamma: found 'x'; it must be float"),
        ("flexprefill(max_budget=x)", r"max_budget: found 'x'; it must be int or None$"),
        ("vertical_slash(,7)", r"vertical_slash, vertical_size: found ''; it must be int"),
        ("vertical_slash(3,,7)", r"vertical_slash, slash_size: found ''; it must be int"),
        ("xattention(norm=2,0.5)", r"found '0.5' after a named value; it needs a name, too"),
        ("patterns", r"patterns: file is missing"),
        ("patterns()", r"patterns: file is missing"),
    ],
)
def test_errors_of_text(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(text)


def test_sizes_are_whole_numbers() -> None:
    for arguments in ({"sink": True}, {"sink": 1.0}, {"window": "3"}):
        with pytest.raises(ValueError, match=r"it must be a whole number >= 0"):
            by_name()["a_shape"](**arguments)


@pytest.mark.parametrize("name", ["patterns.json", "gamma=0.9,tau=0.1.json"])
def test_patterns_from_a_file(name: str, tmp_path: Path) -> None:
    row = [HeadPattern.a_shape(1, 2), HeadPattern.dense()]
    path = tmp_path / name
    ModelPatterns([row, row[::-1]]).save(path)
    method = parse(str(path))
    assert str(method) == f"patterns({path})"
    assert parse(str(method)) == parse(f"patterns(file={path})") == method
    layer = random_layer(10, heads=2, kv_heads=1, layer_idx=1)
    assert method.index(layer).head_patterns == tuple(row[::-1])
    assert method.index(layer.heads([1])).head_patterns == (row[0],)
    with pytest.raises(ValueError, match=r"found '2 layers x 2 heads'; .* a head 3"):
        method.index(random_layer(10))
    with pytest.raises(FileNotFoundError, match=r"absent"):
        parse(str(tmp_path / "absent.json"))


@pytest.mark.parametrize(
    "pattern",
    [
        HeadPattern.dense(),
        HeadPattern.a_shape(3, 40),
        HeadPattern.tri_shape(3, 40, 5),
        HeadPattern.vertical_slash(40, 60),
        HeadPattern.block_sparse(2),
    ],
    ids=lambda pattern: pattern.kind,
)
def test_method_of_a_pattern(pattern: HeadPattern) -> None:
    layer = random_layer(10)
    assert of_pattern(pattern).index(layer).head_patterns == (pattern,) * 4
    assert str(of_pattern(pattern)).startswith(pattern.kind)


def test_patterns_of_indices_are_no_methods() -> None:
    with pytest.raises(ValueError, match=r"kind is 'block_index'; it must be one of dense, "):
        of_pattern(HeadPattern.block_index())


# ---- The command ---------------------------------------------------------------------------------


def test_command_lists_all(capsys: Capture) -> None:
    assert cli.main(["methods"]) == 0
    text = capsys.readouterr().out
    for method in METHODS:
        assert f"\n{method.name}" in f"\n{text}"
        assert method.summary in text
        assert method.source in text
    assert "vertical_slash(vertical_size=1000, slash_size=6096)" in text
    assert "patterns(file)" in text


def test_command_describes_one(capsys: Capture) -> None:
    assert cli.main(["methods", "streaming_llm_dilated"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("streaming_llm_dilated(sink=1024, window=8192, dilation=2)\n")
    assert "odd offsets" in text  # the docstring, which says where the original differs
    assert "a_shape" not in text
    assert "Whole prompts only" not in text
    assert cli.main(["methods", "infllm"]) == 0
    text = capsys.readouterr().out
    assert "\n    Whole prompts only: no chunked prefill" in text
    assert "\n    Models with RoPE as in Llama only." in text


def test_command_writes_json(capsys: Capture, tmp_path: Path) -> None:
    assert cli.main(["methods", "--json", "-"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == [method.name for method in METHODS]
    path = tmp_path / "one.json"
    assert cli.main(["methods", "flexprefill", "--json", str(path)]) == 0
    assert "flexprefill" in capsys.readouterr().out
    (record,) = json.loads(path.read_text())
    assert record["parameters"][2] == {
        "name": "min_budget",
        "type": "int or None",
        "default": None,
        "is_required": False,
    }
    assert not record["needs_whole_prompt"]
    assert cli.main(["methods", "patterns", "--json", "-"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["parameters"][0]["is_required"]


def test_command_refuses_an_unknown_name(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["methods", "flashprefill"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "'flashprefill' is no method; known: dense, " in captured.err
    assert captured.err.count("\n") == 1
