"""Pattern files: both formats, the published files, every sentence for a malformed one.

The published files are not in the repository. They are read from shared/head_configs beside it.
Over 600 lines: because each sentence has a file that earns it, and the counts are written down.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minference_ext import HeadPattern, ModelPatterns, model_patterns
from minference_ext.model_patterns import published_files

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT.parent / "shared" / "head_configs"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(),
    reason="NOT TESTED: the published pattern files; put minference/configs of microsoft/MInference"
    " into shared/head_configs beside the repository",
)

# File, layers x query heads, and how many heads have which (vertical_size, slash_size).
TABLE = """
GLM_4_9B_1M_instruct* 40x32 (1000,6096) 1026; (3500,100) 145; (30,800) 77; (500,700) 18;
  (100,800) 14
Llama_3.1_70B_Instruct_128k*_v2 80x64 (3500,100) 2331; (1000,6096) 818; (30,800) 777; (500,700) 698;
  (100,800) 380; (100,750) 116
Llama_3.1_8B_Instruct_128k* 32x32 (100,800) 297; (1000,6096) 279; (30,800) 175; (3500,100) 149;
  (500,700) 120; (100,750) 4
Llama_3.1_8B_Instruct_128k*_v2 32x32 (512,2048) 1024
Llama_3_70B_Instruct_262k* 80x64 (1000,6096) 3819; (30,800) 654; (100,800) 319; (3500,100) 221;
  (500,700) 106; (100,750) 1
Llama_3_8B_Instruct_262k* 32x32 (1000,6096) 473; (30,800) 278; (100,800) 153; (3500,100) 89;
  (500,700) 31
Phi_3_mini_128k_instruct* 32x32 (3500,100) 378; (1000,6096) 277; (100,750) 184; (500,700) 92;
  (30,800) 50
Qwen2.5_14B_Instruct_1M 48x40 (1000,6096) 1002; (3048,8144) 264; (3500,100) 145; (30,800) 128;
  (5096,10192) 113; (500,700) 73; (9192,14288) 65; (13244,18340) 46; (100,800) 34; (5548,2148) 19;
  (7596,4196) 11; (11692,8292) 7; (15744,12344) 5; (2148,2848) 3; (4196,4896) 2; (8292,8992) 2;
  (4126,4896) 1
Qwen2.5_32B_Instruct_128k* 64x40 (1000,6096) 1789; (3500,100) 439; (30,800) 224; (500,700) 63;
  (100,800) 29; (100,750) 16
Qwen2.5_72B_Instruct_128k* 80x64 (1000,6096) 5073; (30,800) 23; (3500,100) 17; (100,800) 5;
  (100,750) 1; (500,700) 1
Qwen2.5_7B_Instruct_128k_instruct* 28x28 (1000,6096) 411; (3500,100) 202; (30,800) 91; (500,700) 50;
  (100,800) 24; (100,750) 6
Qwen2.5_7B_Instruct_1M 28x28 (1000,6096) 321; (30,800) 72; (3048,8144) 68; (7244,12240) 49;
  (11340,16336) 48; (5096,10192) 39; (9192,14288) 30; (100,800) 19; (500,700) 17; (13388,18384) 16;
  (7596,4196) 14; (4196,4896) 10; (9744,6244) 9; (15436,20432) 9; (3500,100) 7; (6274,6944) 7;
  (6344,6944) 7; (5548,2148) 6; (9292,14288) 5; (10370,11040) 5; (13840,10340) 4
Qwen2_7B_Instruct_128k_instruct* 28x28 (1000,6096) 565; (30,800) 128; (100,800) 40; (3500,100) 36;
  (500,700) 15
Yi_9B_200k* 48x32 (1000,4096) 536; (100,800) 474; (30,800) 266; (3500,100) 200; (500,700) 60
"""
SUFFIX = "_kv_out_v32_fit_o_best_pattern"
EXPECTED = {
    stem.replace("*", SUFFIX): (int(num_layers), int(num_heads), counts)
    for stem, num_layers, num_heads, counts in re.findall(
        r"^(\S+) (\d+)x(\d+) (.*(?:\n  .*)*)$", TABLE, re.MULTILINE
    )
}


# ---- Published files -----------------------------------------------------------------------------


@needs_published
def test_published_files_are_known() -> None:
    assert sorted(published_files()) == sorted(path.stem for path in PUBLISHED.glob("*.json"))
    assert sorted(published_files()) == sorted(EXPECTED)


@needs_published
@pytest.mark.parametrize("stem", EXPECTED)
def test_published_counts(stem: str) -> None:
    num_layers, num_heads, counts = EXPECTED[stem]
    patterns = ModelPatterns.load(PUBLISHED / f"{stem}.json")
    assert (patterns.num_layers, patterns.num_heads) == (num_layers, num_heads)
    found = dict(patterns.counts())
    if stem == "Qwen2.5_7B_Instruct_1M":  # the table leaves out what three heads or fewer have
        rare = [pattern for pattern, count in found.items() if count <= 3]
        found = {pattern: count for pattern, count in found.items() if count > 3}
        assert len(rare) == 13
        assert max(pattern.sizes[0] for pattern in rare) == 22032
        assert max(pattern.sizes[1] for pattern in rare) == 24528
    if stem.startswith("Phi_3"):
        assert found.pop(HeadPattern.a_shape(100, 800)) == 43
    assert found == {
        HeadPattern.vertical_slash(int(vertical), int(slash)): int(count)
        for vertical, slash, count in re.findall(r"\((\d+),(\d+)\) (\d+)", counts)
    }


@needs_published
@pytest.mark.parametrize("stem", EXPECTED)
def test_published_file_is_written_byte_for_byte(stem: str, tmp_path: Path) -> None:
    original = PUBLISHED / f"{stem}.json"
    patterns = ModelPatterns.load(original)
    written = patterns.dumps(format="upstream")
    assert json.loads(written) == json.loads(original.read_text(encoding="utf-8"))
    assert written.encode() == original.read_bytes()
    patterns.save(tmp_path / "ours.json")
    assert ModelPatterns.load(tmp_path / "ours.json") == patterns


@needs_published
@pytest.mark.parametrize(
    "name", [model for models in published_files().values() for model in models]
)
def test_every_model_name_loads(name: str) -> None:
    stem = next(stem for stem, models in published_files().items() if name in models)
    assert (
        ModelPatterns.load(name, folder=PUBLISHED).layers
        == ModelPatterns.load(stem, folder=PUBLISHED).layers
        == ModelPatterns.load(f"{stem}.json", folder=PUBLISHED).layers
    )


def test_both_spellings_of_llama_share_a_file() -> None:
    (models,) = [models for models in published_files().values() if "-8B-" in str(models)][:1]
    assert models == ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B-Instruct")


def test_published_files_is_a_copy() -> None:
    published_files().clear()
    assert len(published_files()) == 14


# ---- The dataclass -------------------------------------------------------------------------------

DENSE = HeadPattern.dense()
LINES = HeadPattern.vertical_slash(1000, 6096)
WINDOW = HeadPattern.a_shape(128, 1024)
BLOCKS = HeadPattern.block_sparse(100)


def test_any_sequences_become_tuples() -> None:
    patterns = ModelPatterns([[DENSE, LINES], (LINES, WINDOW)], [[1, 0.5], (0.25, 0)], model="a/b")
    assert patterns.layers == ((DENSE, LINES), (LINES, WINDOW))
    assert patterns.scores == ((1.0, 0.5), (0.25, 0.0))
    assert (patterns.num_layers, patterns.num_heads, patterns.model) == (2, 2, "a/b")
    assert hash(patterns) == hash(pickle.loads(pickle.dumps(patterns)))
    assert dataclasses.replace(patterns, model=None) != patterns
    assert repr(patterns) == "<ModelPatterns of a/b: 2 layers x 2 heads>"
    assert repr(ModelPatterns([[DENSE]])) == "<ModelPatterns: 1 layers x 1 heads>"
    with pytest.raises(dataclasses.FrozenInstanceError):
        patterns.model = None  # type: ignore[misc]


def test_counts() -> None:
    patterns = ModelPatterns([[WINDOW, LINES, DENSE], [DENSE, BLOCKS, LINES]])
    assert patterns.counts() == [(LINES, 2), (DENSE, 2), (WINDOW, 1), (BLOCKS, 1)]


def test_uniform() -> None:
    assert ModelPatterns.uniform(LINES, 2, 3) == ModelPatterns([[LINES] * 3] * 2)


KINDS = "dense, a_shape, tri_shape, vertical_slash, block_sparse"
BAD_LAYERS: list[tuple[Any, str]] = [
    ([], "layers: found []; it must be a sequence of one or more layers"),
    (LINES, "layers: found HeadPattern(k...=(1000, 6096)); it must be a sequence of one or"),
    ([[]], "layers, layer 0: found []; it must be a sequence of one or more heads"),
    ([DENSE], "layers, layer 0: found HeadPattern(k...se', sizes=()); it must be a sequence"),
    ([[DENSE], [DENSE] * 2], "layers, layer 1: found 2 heads; it must have 1, as layer 0"),
    ([[DENSE, "dense"]], "layer 0, head 1: found 'dense'; it must be a HeadPattern"),
    (
        [[DENSE], [HeadPattern.block_index()]],
        f"layer 1, head 0, kind: found 'block_index'; it must be one of {KINDS}",
    ),
    (
        [[HeadPattern.vertical_slash_index()]],
        f"layer 0, head 0, kind: found 'vertical_slash_index'; it must be one of {KINDS}",
    ),
    (
        [[HeadPattern.vertical_slash(1, -5)]],
        "layer 0, head 0, slash_size: found -5; it must be a whole number >= 0",
    ),
    (
        [[HeadPattern.a_shape(True, 5)]],
        "layer 0, head 0, sink: found True; it must be a whole number >= 0",
    ),
    (
        [[HeadPattern.tri_shape(1, 2, 3.0)]],  # type: ignore[arg-type]
        "layer 0, head 0, last: found 3.0; it must be a whole number >= 0",
    ),
    (
        [[HeadPattern.block_sparse(0)]],
        "layer 0, head 0, top_k: found 0; it must be a whole number >= 1",
    ),
]


@pytest.mark.parametrize(("layers", "sentence"), BAD_LAYERS)
def test_bad_layers(layers: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        ModelPatterns(layers)


BAD_SCORES: list[tuple[Any, str]] = [
    (1.0, "scores: found 1.0; it must be a sequence of one or more layers"),
    ([[1, 2]], "scores: found 1 layers x 2 heads; it must be 2 x 2, as layers"),
    ([[1], [2]], "scores: found 2 layers x 1 heads; it must be 2 x 2, as layers"),
    ([[1, 2], [3]], "scores, layer 1: found 1 heads; it must have 2, as layer 0"),
    ([[1, 2], [math.nan, 4]], "layer 1, head 0, score: found nan; it must be a finite number"),
    ([[1, 2], [3, -math.inf]], "layer 1, head 1, score: found -inf; it must be a finite number"),
    ([[True, 2], [3, 4]], "layer 0, head 0, score: found True; it must be a finite number"),
    ([["1", 2], [3, 4]], "layer 0, head 0, score: found '1'; it must be a finite number"),
    ([[1, 2], [3, 10**400]], "layer 1, head 1, score: found 100000000000000000...0000"),
]


@pytest.mark.parametrize(("scores", "sentence"), BAD_SCORES)
def test_bad_scores(scores: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        ModelPatterns([[DENSE] * 2] * 2, scores)


@pytest.mark.parametrize("model", ["", 5])
def test_bad_model(model: Any) -> None:
    with pytest.raises(ValueError, match=f"^model: found {model!r}; it must be None or a name$"):
        ModelPatterns([[DENSE]], model=model)


@pytest.mark.parametrize("number", [0, True, 2.0])
def test_bad_uniform(number: Any) -> None:
    end = f": found {number}; it must be a whole number >= 1$"
    with pytest.raises(ValueError, match=f"^num_layers{end}"):
        ModelPatterns.uniform(LINES, number, 1)
    with pytest.raises(ValueError, match=f"^num_heads{end}"):
        ModelPatterns.uniform(LINES, 1, number)


# ---- Round trips ---------------------------------------------------------------------------------


def head_patterns(kinds: Sequence[str]) -> st.SearchStrategy[HeadPattern]:
    size = st.integers(0, 1 << 40)
    builds: dict[str, st.SearchStrategy[HeadPattern]] = {
        "dense": st.just(DENSE),
        "a_shape": st.builds(HeadPattern.a_shape, size, size),
        "tri_shape": st.builds(HeadPattern.tri_shape, size, size, size),
        "vertical_slash": st.builds(HeadPattern.vertical_slash, size, size),
        "block_sparse": st.builds(HeadPattern.block_sparse, st.integers(1, 1 << 40)),
        "block_sparse_100": st.just(BLOCKS),
    }
    return st.one_of(*(builds[kind] for kind in kinds))


@st.composite
def model_pattern_sets(
    draw: st.DrawFn,
    kinds: Sequence[str] = KINDS.split(", "),
    has_model: bool = True,
) -> ModelPatterns:
    num_layers, num_heads = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    few = draw(st.lists(head_patterns(kinds), min_size=1, max_size=3))  # so that runs are drawn
    score = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 1 << 60)

    def grid(entry: st.SearchStrategy[Any]) -> list[list[Any]]:
        row = st.lists(entry, min_size=num_heads, max_size=num_heads)
        return draw(st.lists(row, min_size=num_layers, max_size=num_layers))

    model = st.none() | st.text(min_size=1) if has_model else st.none()
    scores = grid(score) if draw(st.booleans()) else None
    return ModelPatterns(grid(st.sampled_from(few)), scores, model=draw(model))


@given(model_pattern_sets())
def test_our_format_round_trip(patterns: ModelPatterns) -> None:
    assert ModelPatterns.loads(patterns.dumps()) == patterns


@given(model_pattern_sets(("a_shape", "vertical_slash", "block_sparse_100"), has_model=False))
def test_upstream_format_round_trip(patterns: ModelPatterns) -> None:
    assert ModelPatterns.loads(patterns.dumps(format="upstream")) == patterns


def test_our_format_text() -> None:
    patterns = ModelPatterns(
        [[LINES] * 3, [LINES, HeadPattern.tri_shape(1, 2, 3), BLOCKS]], model="a/b"
    )
    assert (
        patterns.dumps()
        == """{
  "format": "minference_patterns",
  "version": 1,
  "model": "a/b",
  "num_layers": 2,
  "num_heads": 3,
  "layers": [
    {"layer": 0, "heads": [0, 2], "kind": "vertical_slash", "vertical_size": 1000, "slash_size": 6096},
    {"layer": 1, "heads": [0, 0], "kind": "vertical_slash", "vertical_size": 1000, "slash_size": 6096},
    {"layer": 1, "heads": [1, 1], "kind": "tri_shape", "sink": 1, "window": 2, "last": 3},
    {"layer": 1, "heads": [2, 2], "kind": "block_sparse", "top_k": 100}
  ]
}
"""  # noqa: E501
    )


def test_equal_scores_share_a_run_and_others_do_not() -> None:
    text = ModelPatterns([[WINDOW] * 3], [[0.5, 0.5, 0.25]]).dumps()
    assert json.loads(text)["layers"] == [
        {"layer": 0, "heads": [0, 1], "kind": "a_shape", "sink": 128, "window": 1024, "score": 0.5},
        {
            "layer": 0,
            "heads": [2, 2],
            "kind": "a_shape",
            "sink": 128,
            "window": 1024,
            "score": 0.25,
        },
    ]


def test_upstream_text() -> None:
    patterns = ModelPatterns([[LINES, WINDOW], [BLOCKS, LINES]], [[0.5, 336], [0, 1]], model="a/b")
    text = (
        '[{"0": ["vertical_and_slash", 1000, 6096, 0.5], "1": ["stream_llm", 128, 1024, 336]}, '
        '{"0": ["block_sparse", 100, 0, 0], "1": ["vertical_and_slash", 1000, 6096, 1]}]\n'
    )
    assert patterns.dumps(format="upstream") == text
    assert ModelPatterns.loads(text) == dataclasses.replace(patterns, model=None)


def test_upstream_without_scores() -> None:
    patterns = ModelPatterns([[LINES, WINDOW]])
    text = patterns.dumps(format="upstream")
    assert [entry[3] for entry in json.loads(text)[0].values()] == [None, None]
    assert ModelPatterns.loads(text).scores is None


def test_upstream_block_sparse_sizes_are_ignored() -> None:
    patterns = ModelPatterns.loads(
        '[{"1": ["block_sparse", 7, -1, 1], "0": ["stream_llm", 1, 2, 3]}]'
    )
    assert patterns.layers == ((HeadPattern.a_shape(1, 2), BLOCKS),)
    assert patterns.scores == ((3, 1),)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (DENSE, "{'kind': 'dense'}"),
        (
            HeadPattern.tri_shape(1, 2, 3),
            "{'kind': 'tri_shape', 'sink': 1, 'window': 2, 'last': 3}",
        ),
        (HeadPattern.block_sparse(50), "{'kind': 'block_sparse', 'top_k': 50}"),
    ],
)
def test_upstream_cannot_say(pattern: HeadPattern, found: str) -> None:
    sentence = (
        f"layer 1, head 2: found {found}; format 'upstream' can say vertical_slash, a_shape and "
        "block_sparse with top_k 100 only"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        ModelPatterns([[LINES] * 3, [LINES, LINES, pattern]]).dumps(format="upstream")


def test_bad_format() -> None:
    sentence = "^format: found 'json'; it must be 'minference' or 'upstream'$"
    with pytest.raises(ValueError, match=sentence):
        ModelPatterns([[LINES]]).dumps(format="json")  # type: ignore[arg-type]


# ---- Malformed files -----------------------------------------------------------------------------

REMOVED = object()
RUNS: list[dict[str, Any]] = [
    {"layer": 0, "heads": [0, 1], "kind": "vertical_slash", "vertical_size": 1, "slash_size": 2},
    {"layer": 0, "heads": [2, 2], "kind": "dense"},
    {"layer": 1, "heads": [0, 2], "kind": "block_sparse", "top_k": 3},
]


def ours(**changes: Any) -> str:
    """A file of 2 layers x 3 heads with some keys of the top level changed."""
    top = {
        "format": "minference_patterns",
        "version": 1,
        "num_layers": 2,
        "num_heads": 3,
        "layers": RUNS,
    }
    return json.dumps(
        {key: value for key, value in (top | changes).items() if value is not REMOVED}
    )


def ours_run(index: int, runs: list[dict[str, Any]] = RUNS, **changes: Any) -> str:
    """The same with some keys of one run changed."""
    changed = {k: v for k, v in (runs[index] | changes).items() if v is not REMOVED}
    return ours(layers=[*runs[:index], changed, *runs[index + 1 :]])


LINES_TYPE = "vertical_and_slash"


def upstream(head: Any) -> str:
    """A file of upstream's of 2 layers x 2 heads with the last head changed."""
    plain = [LINES_TYPE, 1, 2, 0.5]
    return json.dumps([{"0": plain, "1": plain}, {"0": plain, "1": head}])


UPSTREAM = upstream(["stream_llm", 1, 2, 3])
LONGER_LAYER = json.dumps([{"0": [LINES_TYPE, 1, 2, 3]}, json.loads(UPSTREAM)[1]])


def numbers(num_layers: int) -> str:
    return f"num_layers is {num_layers} and num_heads 3"


def last_from(head: int) -> str:
    return f"it must be [{head}, last], with last from {head} to 2"


TOP_KEYS = "the keys are format, version, num_layers, num_heads, layers and, optional, model"
RUN_KEYS = "the keys are layer, heads, kind, vertical_size, slash_size and, optional, score"
ONE_KIND = f"it must be one of {KINDS}"
IN_ORDER = "runs must be in order, and layer 0, head 2 comes next"
WHOLE = "it must be a whole number >= 0"
WHOLE_1 = "it must be a whole number >= 1"
FINITE = "it must be a finite number"
NEITHER = (
    "it must be a list (the format of microsoft/MInference) or an object with "
    '"format": "minference_patterns"'
)
READS = "this minference_ext reads version 1"
ONCE = "twice; a key may stand once"
ONE_OR_NONE = "every head must have one, or none"
ENTRY = "it must be [type, size, size, score]"
TYPES = "it must be one of vertical_and_slash, stream_llm, block_sparse"
UPSTREAM_HEADS = "its 2 heads must be '0' to '1'"
SCORED = [run | {"score": 1} for run in RUNS]

BAD_FILES: list[tuple[str, str]] = [
    # JSON
    ("", "Expecting value: line 1 column 1 (char 0)"),
    ('{\n  "format": minference\n}', "Expecting value: line 2 column 13 (char 14)"),
    ("{}", "found {}; " + NEITHER),
    ("5", "found 5; " + NEITHER),
    ('{"version": 1}', "found {'version': 1}; " + NEITHER),
    # Our format: the top level
    (ours(format="patterns"), "format: found 'patterns'; it must be 'minference_patterns'"),
    (ours(format=None), "format: found None; it must be 'minference_patterns'"),
    (ours(version=2), f"version: found 2; {READS}"),
    (ours(version=True), f"version: found True; {READS}"),
    (ours(version=1.0), f"version: found 1.0; {READS}"),
    (ours(version=REMOVED), f"version: found None; {READS}"),
    (ours(comment=""), f"top level: found unknown key 'comment'; {TOP_KEYS}"),
    (ours(num_heads=REMOVED), f"top level: found no key 'num_heads'; {TOP_KEYS}"),
    (ours(layers=REMOVED), f"top level: found no key 'layers'; {TOP_KEYS}"),
    (ours().replace("{", '{"version": 1, ', 1), f"top level: found key 'version' {ONCE}"),
    (ours(num_layers=0), f"num_layers: found 0; {WHOLE_1}"),
    (ours(num_layers=2.0), f"num_layers: found 2.0; {WHOLE_1}"),
    (ours(num_heads="3"), f"num_heads: found '3'; {WHOLE_1}"),
    (ours(num_heads=True), f"num_heads: found True; {WHOLE_1}"),
    (ours(model=None), "model: found None; it must be a name, or left out"),
    (ours(model=5), "model: found 5; it must be None or a name"),
    (ours(layers={}), "layers: found {}; it must be a list"),
    (ours(layers=[]), f"layer 0, head 0: found the end of layers; {numbers(2)}"),
    (ours(num_layers=3), f"layer 2, head 0: found the end of layers; {numbers(3)}"),
    (ours(layers=[*RUNS, 5]), f"layers: found 5 after the last head; {numbers(2)}"),
    # Our format: runs
    (ours(layers=[5]), "layer 0, head 0: found 5; it must be an object"),
    (ours_run(1, layer=1), f"layer 0, head 2, layer: found 1; {IN_ORDER}"),
    (ours_run(1, layer=False), f"layer 0, head 2, layer: found False; {IN_ORDER}"),
    (ours_run(1, heads=[1, 2]), f"layer 0, head 2, heads: found [1, 2]; {last_from(2)}"),
    (ours_run(2, heads=[0, 3]), f"layer 1, head 0, heads: found [0, 3]; {last_from(0)}"),
    (ours_run(2, heads=[0, -1]), f"layer 1, head 0, heads: found [0, -1]; {last_from(0)}"),
    (ours_run(2, heads=[0]), f"layer 1, head 0, heads: found [0]; {last_from(0)}"),
    (ours_run(2, heads=[False, 2]), f"layer 1, head 0, heads: found [False, 2]; {last_from(0)}"),
    (ours_run(2, heads=2), f"layer 1, head 0, heads: found 2; {last_from(0)}"),
    (ours_run(1, kind="block_index"), f"layer 0, head 2, kind: found 'block_index'; {ONE_KIND}"),
    (ours_run(1, kind=["dense"]), f"layer 0, head 2, kind: found ['dense']; {ONE_KIND}"),
    (ours_run(1, kind=REMOVED), f"layer 0, head 2, kind: found None; {ONE_KIND}"),
    (ours_run(0, slash=4), f"layer 0, head 0: found unknown key 'slash'; {RUN_KEYS}"),
    (ours_run(0, slash_size=REMOVED), f"layer 0, head 0: found no key 'slash_size'; {RUN_KEYS}"),
    (ours_run(0, layer=REMOVED), f"layer 0, head 0: found no key 'layer'; {RUN_KEYS}"),
    (
        ours().replace('"top_k"', '"top_k": 3, "top_k"'),
        f"layer 1, head 0: found key 'top_k' {ONCE}",
    ),
    (ours_run(0, slash_size=-5), f"layer 0, head 0, slash_size: found -5; {WHOLE}"),
    (ours_run(0, slash_size=True), f"layer 0, head 0, slash_size: found True; {WHOLE}"),
    (ours_run(0, vertical_size=1.0), f"layer 0, head 0, vertical_size: found 1.0; {WHOLE}"),
    (ours_run(0, vertical_size=math.nan), f"layer 0, head 0, vertical_size: found nan; {WHOLE}"),
    (ours_run(0, vertical_size=math.inf), f"layer 0, head 0, vertical_size: found inf; {WHOLE}"),
    (ours_run(0, vertical_size=None), f"layer 0, head 0, vertical_size: found None; {WHOLE}"),
    (ours_run(2, top_k=0), f"layer 1, head 0, top_k: found 0; {WHOLE_1}"),
    (ours_run(1, score=1), f"layer 0, head 2: found a score; {ONE_OR_NONE}"),
    (ours_run(0, score=1), f"layer 0, head 2: found no score; {ONE_OR_NONE}"),
    (ours_run(1, SCORED, score=math.nan), f"layer 0, head 2, score: found nan; {FINITE}"),
    (ours_run(2, SCORED, score=None), f"layer 1, head 0, score: found None; {FINITE}"),
    # Upstream's format
    ("[]", "layers: found []; it must be a sequence of one or more layers"),
    ("[{}]", "layers, layer 0: found []; it must be a sequence of one or more heads"),
    ("[[]]", "layer 0: found []; it must be an object"),
    (
        UPSTREAM.replace('"1"', '"2"', 1),
        f"layer 0: found head '2' and no head '1'; {UPSTREAM_HEADS}",
    ),
    (
        UPSTREAM.replace('"0"', '"00"', 1),
        f"layer 0: found head '00' and no head '0'; {UPSTREAM_HEADS}",
    ),
    (UPSTREAM.replace('"1"', '"0"', 1), f"layer 0: found key '0' {ONCE}"),
    (LONGER_LAYER, "layers, layer 1: found 2 heads; it must have 1, as layer 0"),
    (upstream(5), f"layer 1, head 1: found 5; {ENTRY}"),
    (upstream(["stream_llm", 1, 2]), f"layer 1, head 1: found ['stream_llm', 1, 2]; {ENTRY}"),
    (upstream(["dense", 1, 2, 3]), f"layer 1, head 1, type: found 'dense'; {TYPES}"),
    (upstream([{}, 1, 2, 3]), f"layer 1, head 1, type: found {{}}; {TYPES}"),
    (upstream([LINES_TYPE, 1, -2, 3]), f"layer 1, head 1, slash_size: found -2; {WHOLE}"),
    (upstream(["stream_llm", 1.0, 2, 3]), f"layer 1, head 1, sink: found 1.0; {WHOLE}"),
    (upstream([LINES_TYPE, 1, 2, math.inf]), f"layer 1, head 1, score: found inf; {FINITE}"),
    (upstream(["stream_llm", 1, 2, None]), f"layer 1, head 1, score: found None; {FINITE}"),
    (upstream(["block_sparse", 1, 2, "3"]), f"layer 1, head 1, score: found '3'; {FINITE}"),
]


def test_the_files_to_break_are_whole() -> None:
    assert ModelPatterns.loads(ours()) == ModelPatterns(
        [[HeadPattern.vertical_slash(1, 2)] * 2 + [DENSE], [HeadPattern.block_sparse(3)] * 3]
    )
    assert ModelPatterns.loads(UPSTREAM).layers[1][1] == HeadPattern.a_shape(1, 2)


@pytest.mark.parametrize(("text", "sentence"), BAD_FILES)
def test_malformed_file(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^patterns.json: {re.escape(sentence)}$"):
        ModelPatterns.loads(text, name="patterns.json")
    path = tmp_path / "patterns.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {sentence}')}$"):
        ModelPatterns.load(path)


def test_malformed_beyond_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^<string>: "):
        ModelPatterns.loads("[" * 200_000)
    with pytest.raises(ValueError, match=r"^<string>: Exceeds the limit \(\d+ digits\)"):
        ModelPatterns.loads(
            ours(num_heads=0).replace('"num_heads": 0', f'"num_heads": {"9" * 5000}')
        )
    path = tmp_path / "patterns.json"
    path.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: it must be text in UTF-8: "):
        ModelPatterns.load(path)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    model_pattern_sets(("a_shape", "vertical_slash", "block_sparse_100"), has_model=False),
    st.data(),
)
def test_any_change_is_refused_with_the_files_name_or_makes_sense(
    patterns: ModelPatterns, data: st.DataObject
) -> None:
    upstreams = data.draw(st.booleans())
    content = json.loads(patterns.dumps(format="upstream" if upstreams else "minference"))
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(ANY_JSON)
    else:
        del place[key]
    text = json.dumps(content)
    try:
        changed = ModelPatterns.loads(text)
    except ValueError:  # and nothing else
        with pytest.raises(ValueError, match=r"^patterns.json: "):
            ModelPatterns.loads(text, name="patterns.json")
    else:
        assert ModelPatterns.loads(changed.dumps()) == changed


# ---- Saving --------------------------------------------------------------------------------------


def test_save_replaces(tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    for patterns in (ModelPatterns([[LINES]]), ModelPatterns([[WINDOW]], [[0.5]])):
        patterns.save(str(path))
        assert path.read_text(encoding="utf-8") == patterns.dumps()
        patterns.save(path, format="upstream")
        assert path.read_text(encoding="utf-8") == patterns.dumps(format="upstream")
        assert ModelPatterns.load(path) == patterns
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("existed", [True, False])
def test_failed_save_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existed: bool
) -> None:
    def fail(*args: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "patterns.json"
    if existed:
        ModelPatterns([[LINES]]).save(path)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"^no space left$"):
        ModelPatterns([[DENSE]]).save(path)
    assert list(tmp_path.iterdir()) == [path] * existed
    assert not existed or ModelPatterns.load(path) == ModelPatterns([[LINES]])


def test_save_of_what_cannot_be_said_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    ModelPatterns([[LINES]]).save(path)
    with pytest.raises(ValueError, match=r"^layer 0, head 0: found "):
        ModelPatterns([[DENSE]]).save(path, format="upstream")
    assert list(tmp_path.iterdir()) == [path]
    assert ModelPatterns.load(path) == ModelPatterns([[LINES]])


def test_save_needs_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "absent"
    sentence = f"{folder / 'patterns.json'}: its folder must exist, and {folder} does not"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        ModelPatterns([[LINES]]).save(folder / "patterns.json")
    assert list(tmp_path.iterdir()) == []


# ---- Names ---------------------------------------------------------------------------------------

STEM = f"Qwen2_7B_Instruct_128k_instruct{SUFFIX}"
MODEL = "Qwen/Qwen2-7B-Instruct"
IN_FOLDER, IN_PACKAGE = ModelPatterns([[LINES]]), ModelPatterns([[WINDOW]])


def without_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_patterns, "find_spec", lambda name: None)


@pytest.fixture
def upstream_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configs of a package minference that is installed and must not be imported."""
    configs = tmp_path / "site" / "minference" / "configs"
    configs.mkdir(parents=True)
    (configs.parent / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    IN_PACKAGE.save(configs / f"{STEM}.json", format="upstream")
    return configs


@pytest.mark.parametrize("name", [STEM, f"{STEM}.json", MODEL])
def test_name_in_installed_package(upstream_package: Path, name: str) -> None:
    assert ModelPatterns.load(name) == IN_PACKAGE
    assert "minference" not in sys.modules


@pytest.mark.parametrize("name", [STEM, f"{STEM}.json", MODEL])
def test_folder_comes_before_the_package(upstream_package: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    assert ModelPatterns.load(name, folder=folder) == IN_PACKAGE
    folder.mkdir()
    assert ModelPatterns.load(name, folder=folder) == IN_PACKAGE
    IN_FOLDER.save(folder / f"{STEM}.json", format="upstream")
    assert ModelPatterns.load(name, folder=str(folder)) == IN_FOLDER


def test_a_file_comes_before_a_name(
    upstream_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    IN_FOLDER.save(f"{STEM}.json")
    assert ModelPatterns.load(f"{STEM}.json") == IN_FOLDER
    Path(MODEL).mkdir(parents=True)  # a checkpoint's folder
    assert ModelPatterns.load(MODEL) == IN_PACKAGE


URL = "https://raw.githubusercontent.com/microsoft/MInference/main/minference/configs"
FETCH = (
    f". It is not part of minference_ext; fetch {URL}/{STEM}.json and pass its folder, or its path"
)


@pytest.mark.parametrize("name", [STEM, f"{STEM}.json", MODEL])
def test_absent_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without_upstream(monkeypatch)
    start = f"{name}: looked for the file {STEM}.json: "
    nowhere = "folder was not given and no package minference is installed"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(start + nowhere + FETCH)}$"):
        ModelPatterns.load(name)
    places = f"not in {tmp_path}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(start + places + FETCH)}$"):
        ModelPatterns.load(name, folder=tmp_path)


def test_published_file_absent_from_the_package(upstream_package: Path, tmp_path: Path) -> None:
    (upstream_package / f"{STEM}.json").unlink()
    sentence = (
        f"{MODEL}: looked for the file {STEM}.json: not in {tmp_path} or {upstream_package}{FETCH}"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        ModelPatterns.load(MODEL, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("QWEN/QWEN2-7B-INSTRUCT", MODEL),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen2.5_7B_Instruct_1m.json", "Qwen2.5_7B_Instruct_1M"),
        (Path("configs/Qwen2.5_7B_Instruct_1M.json"), "Qwen2.5_7B_Instruct_1M"),
    ],
)
def test_unknown_name_suggests(tmp_path: Path, name: str | Path, close: str) -> None:
    start = (
        f"{str(name)!r} must be a file that exists, or the name of a published file or of a model "
        f"that has one; close names are {close}"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(start)}(,|$)"):
        ModelPatterns.load(name, folder=tmp_path)


def test_unknown_name_without_any_close(tmp_path: Path) -> None:
    sentence = (
        "'patterns/mine.json' must be a file that exists, or the name of a published file or of a "
        "model that has one; minference_ext.model_patterns.published_files() lists the names"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(sentence)}$"):
        ModelPatterns.load("patterns/mine.json", folder=tmp_path)
