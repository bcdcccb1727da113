"""Methods: layers, heads that mix methods, and what each of those that know their keys by shape or
by lines attends. The methods that select blocks, and InfLLM, have files of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from minference_ext.methods import (
    METHODS,
    Layer,
    Rotation,
    attend_heads,
    parse,
    stats_of_heads,
)
from minference_ext.methods.static import StaticBlockSparse
from torch import Tensor

from tests import reference
from tests.check import MIN_GAP
from tests.layer_check import check_layer, kv_head, random_layer

# ---- Heads with their own methods ----------------------------------------------------------------

# Which of two methods a head has: groups of four, two and one query heads stay whole or are cut.
MIXES = ["aaaabbbb", "abababab", "aabbbbaa", "abbbbbbb", "bbbbbbba", "aabbccdd", "abcdabcd"]
MIXED = {"a": "a_shape(3,70)", "b": "vertical_slash(40,60)", "c": "only_slash(90)", "d": "dense"}


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize("mix", MIXES)
def test_mixed_heads_equal_each_head_alone(mix: str, kv_heads: int) -> None:
    layer = random_layer(300, heads=8, kv_heads=kv_heads)
    methods = [parse(MIXED[letter]) for letter in mix]
    out, lse = attend_heads(methods, layer)
    stats = stats_of_heads(methods, layer)
    assert out.transpose(1, 2).is_contiguous()
    for head, method in enumerate(methods):
        alone = layer.heads([head])
        torch.testing.assert_close(alone.k, layer.k[:, [kv_head(layer, head)]], rtol=0, atol=0)
        out_alone, lse_alone = method.attend(alone)
        torch.testing.assert_close(out[:, [head]], out_alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse[:, [head]], lse_alone, rtol=1e-5, atol=1e-6)
        of_alone = method.stats(alone)
        for field in dataclasses.fields(stats):
            found, expected = getattr(stats, field.name), getattr(of_alone, field.name)
            assert int(found[0, head]) == int(expected[0, 0]), field.name


def test_one_method_serves_all_heads() -> None:
    layer, method = random_layer(200), parse("a_shape(3,40)")
    expected = method.attend(layer)
    for methods in ([method], [method] * 4):
        for found, want in zip(attend_heads(methods, layer), expected, strict=True):
            assert torch.equal(found, want)
    assert stats_of_heads([method], layer).is_dense.shape == (1, 4)


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_lists_of_methods_of_another_length(count: int) -> None:
    methods = [parse("dense")] * count
    for use in (attend_heads, stats_of_heads):
        with pytest.raises(
            ValueError, match=rf"found '{count} methods'; .* one for each of the 4 query heads"
        ):
            use(methods, random_layer(10))


def test_heads_of_a_layer_know_which_they_are() -> None:
    layer = random_layer(10, heads=8)
    assert layer.head_indices == tuple(range(8))
    assert layer.heads([4, 5, 6, 7]).k.shape[1] == 1  # a whole group keeps its one kv head
    assert layer.heads([4, 5, 6, 7]).k.data_ptr() == layer.k[:, 1:].data_ptr()
    assert layer.heads([3, 4]).k.shape[1] == 2
    assert layer.heads([2, 5, 7]).heads([1, 2]).head_indices == (5, 7)
    assert torch.equal(layer.heads([2, 5, 7]).heads([2]).q, layer.q[:, 7:])


@pytest.mark.parametrize(
    ("heads", "kv_heads"),
    [
        ([4, 5], [1]),  # part of a group shares its kv head, and is a view of it
        ([0, 1, 6, 7], [0, 1]),
        ([0, 1, 2, 3, 4, 5], [0, 0, 1]),  # runs of four and two
        ([0, 1, 2, 4], [0, 0, 0, 1]),
        ([7, 3, 2], [1, 0, 0]),
    ],
)
def test_heads_of_a_layer_hold_few_kv_heads(heads: list[int], kv_heads: list[int]) -> None:
    layer = random_layer(10, heads=8)
    part = layer.heads(heads)
    assert torch.equal(part.q, layer.q[:, heads])
    for found, whole in ((part.k, layer.k), (part.v, layer.v)):
        assert torch.equal(found, whole[:, kv_heads])
        is_view = found.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert is_view == (kv_heads in ([0, 1], [1]))


def test_queries_by_kv_head() -> None:
    layer = random_layer(5, 9, heads=6)
    pairs = list(layer.by_kv_head())
    assert len(pairs) == 2
    for kv, (keys, queries) in enumerate(pairs):
        assert torch.equal(keys, layer.k[0, kv])
        assert torch.equal(queries, layer.q[0, 3 * kv : 3 * kv + 3])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": (2, 4, 10, 64)}, r"q: found \(2, 4, 10, 64\); it must be \[1, H, q_len >= 1"),
        ({"q": (1, 4, 0, 64)}, r"q: found \(1, 4, 0, 64\)"),
        ({"q": (4, 10, 64)}, r"q: found \(4, 10, 64\)"),
        ({"q": (1, 3, 10, 64)}, r"k: found \(1, 2, 10, 64\); .* a divisor of the 3 heads of q"),
        ({"q": (1, 4, 11, 64)}, r"k: found '10 keys'; it must be at least as many as the 11 quer"),
        ({"k": (1, 2, 10, 32)}, r"k: found \(1, 2, 10, 32\)"),
        ({"k": (1, 0, 10, 64)}, r"k: found \(1, 0, 10, 64\)"),
        ({"v": (1, 2, 9, 64)}, r"v: found \(1, 2, 9, 64\); it must be \(1, 2, 10, 64\), as k"),
    ],
)
def test_shapes_of_a_layer(change: dict[str, tuple[int, ...]], sentence: str) -> None:
    shapes = {"q": (1, 4, 10, 64), "k": (1, 2, 10, 64), "v": (1, 2, 10, 64)} | change
    with pytest.raises(ValueError, match=sentence):
        Layer(torch.zeros(shapes["q"]), torch.zeros(shapes["k"]), torch.zeros(shapes["v"]))


def test_head_indices_of_a_layer_are_as_many_as_heads() -> None:
    with pytest.raises(ValueError, match=r"head_idx: found \(1, 2\); .* each of the 4 heads of q"):
        dataclasses.replace(random_layer(10), head_idx=(1, 2))


def test_scale() -> None:
    assert random_layer(3, head_dim=64).scale == 0.125
    assert random_layer(3, softmax_scale=0.3).scale == 0.3


def test_whole_prompts_and_rotations_are_asked_for() -> None:
    for method in (method() for method in METHODS if method.name != "patterns"):
        if method.needs_whole_prompt:
            with pytest.raises(
                ValueError, match=rf"{method.name} attends whole prompts: found 5 queries for 9"
            ):
                method.attend(random_layer(5, 9, rotation=Rotation(*torch.ones(2, 5, 64))))
        if method.needs_rotation:
            with pytest.raises(ValueError, match=rf"{method.name} turns .* this layer gives none"):
                method.stats(random_layer(5))


# ---- What each attends ---------------------------------------------------------------------------

# Every mask is from the method's docstring: q and k of one head, scale -> pairs, closest decision.
Oracle = Callable[[Tensor, Tensor, float], tuple[Tensor, float]]


def by_pattern(pattern: reference.Pattern) -> Oracle:
    return lambda q, k, scale: reference.head_mask(pattern, q, k, scale)


def only_lines(vertical_size: int | None, slash_size: int | None) -> Oracle:
    """One kind of line by rank, 30 columns or 100 offsets first; of the other kind line 0."""

    def oracle(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, float]:
        columns, diagonals = reference.vs_scores(q, k, scale)
        chosen, gaps = [], []
        for scores, size, forced in ((columns, vertical_size, 30), (diagonals, slash_size, 100)):
            lines, gap = [0], math.inf
            if size is not None:
                lines, gap = reference.select_lines(scores, size, 0, forced)
            chosen.append(lines)
            gaps.append(gap)
        return reference.vertical_slash_mask(len(q), len(k), chosen[0], chosen[1]), min(gaps)

    return oracle


def by_offset(sink: int, is_attended: Callable[[int], bool]) -> Oracle:
    def oracle(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, float]:
        o = reference.offsets(len(q), len(k))
        attended = torch.tensor([is_attended(offset) for offset in range(len(k))])
        mask = attended[o.clamp(min=0)] | (torch.arange(len(k)) < sink)
        return mask & (o >= 0), math.inf

    return oracle


ATTENDS: dict[str, Oracle] = {
    "dense": by_pattern(reference.Dense()),
    "a_shape(3,70)": by_pattern(reference.AShape(3, 70)),
    "streaming_llm(64,64)": by_pattern(reference.AShape(64, 64)),
    "tri_shape(5,64,20)": by_pattern(reference.TriShape(5, 64, 20)),
    "triangle_mix(1,5,64,20)": by_pattern(reference.Dense()),
    "triangle_mix(0,5,64,20)": by_pattern(reference.TriShape(5, 64, 20)),
    "block_sparse(2)": by_pattern(reference.BlockSparse(2)),
    "only_vertical(60)": only_lines(60, None),
    "only_vertical(7)": only_lines(7, None),  # fewer than the 30 that rank first
    "only_vertical(0)": only_lines(0, None),
    "only_vertical(4096)": only_lines(4096, None),  # more than keys
    "only_slash(130)": only_lines(None, 130),
    "only_slash(20)": only_lines(None, 20),
    "only_slash(0)": only_lines(None, 0),
    "only_slash(4096)": only_lines(None, 4096),
    "streaming_llm_dilated(10,90,2)": by_offset(10, lambda o: o < 90 and o % 2 == 0),
    "streaming_llm_dilated(0,4096,3)": by_offset(0, lambda o: o % 3 == 0),
    "streaming_llm_dilated(5,0,2)": by_offset(5, lambda o: False),
    "streaming_llm_dilated(0,0,1)": by_offset(0, lambda o: False),  # no key at all
    "streaming_llm_strided(10,33,90,2)": by_offset(
        10, lambda o: o < 33 or (o < 123 and (o - 33) % 2 == 0)
    ),
    "streaming_llm_strided(0,5,4096,7)": by_offset(0, lambda o: o < 5 or (o - 5) % 7 == 0),
}
LENGTHS = [
    pytest.param({"q_len": 1, "kv_heads": 4}, id="1"),
    pytest.param({"q_len": 1, "kv_len": 200}, id="1-of-200"),
    pytest.param({"q_len": 63, "kv_heads": 1, "dtype": torch.bfloat16}, id="63"),
    pytest.param({"q_len": 64, "head_dim": 128}, id="64"),
    pytest.param({"q_len": 65, "dtype": torch.bfloat16}, id="65"),
    pytest.param({"q_len": 129, "kv_heads": 4, "softmax_scale": 0.2}, id="129"),
    pytest.param({"q_len": 100, "kv_len": 301}, id="100-of-301"),
    pytest.param({"q_len": 520, "kv_heads": 1, "dtype": torch.bfloat16}, id="520"),
]


def clear_layer(oracle: Oracle, **shape: Any) -> tuple[Layer, Tensor]:
    """Random data on which no rounding can change what the oracle selects, and its mask."""
    for seed in range(40):
        layer = random_layer(seed=seed, **shape)
        heads = [
            oracle(layer.q[0, head], layer.k[0, kv_head(layer, head)], layer.scale)
            for head in range(layer.num_heads)
        ]
        if min(gap for _, gap in heads) >= MIN_GAP:
            return layer, torch.stack([mask for mask, _ in heads])
    raise AssertionError("no seed gives an estimation without near ties")


@pytest.mark.parametrize("shape", LENGTHS)
@pytest.mark.parametrize("text", ATTENDS)
def test_attends(text: str, shape: dict[str, Any]) -> None:
    layer, mask = clear_layer(ATTENDS[text], **shape)
    method = parse(text)
    assert str(method) == text
    check_layer(method, layer, mask)


@pytest.mark.parametrize(
    ("text", "oracle"),
    [
        ("vertical_slash(40,103)", by_pattern(reference.VerticalSlash(40, 103))),
        ("only_vertical(200)", only_lines(200, None)),
        ("only_slash(150)", only_lines(None, 150)),
        ("streaming_llm_dilated(64,400,2)", by_offset(64, lambda o: o < 400 and o % 2 == 0)),
        ("block_sparse(5)", by_pattern(reference.BlockSparse(5))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attends_longer_prompts(text: str, oracle: Oracle, dtype: torch.dtype) -> None:
    """Long enough that dense attention costs more, so that lines that fall back to it do not."""
    shape: dict[str, Any] = {"heads": 2, "kv_heads": 1, "head_dim": 128, "softmax_scale": 0.2}
    shape |= {"q_len": 1000, "dtype": dtype}
    layer, mask = clear_layer(oracle, **shape)
    assert not mask[:, -1].all()
    check_layer(parse(text), layer, mask)


def test_chunks_are_calls_of_their_own() -> None:
    layer, size = random_layer(1000), 384
    out, lse = parse(f"vertical_slash_per_chunk(40,103,{size})").attend(layer)
    for begin in range(0, 1000, size):
        end = min(begin + size, 1000)
        chunk = dataclasses.replace(
            layer, q=layer.q[:, :, begin:end], k=layer.k[:, :, :end], v=layer.v[:, :, :end]
        )
        expected, expected_lse = parse("vertical_slash(40,103)").attend(chunk)
        torch.testing.assert_close(out[:, :, begin:end], expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse[:, :, begin:end], expected_lse, rtol=1e-5, atol=1e-6)


def test_given_lines_do_not_fall_back() -> None:
    """vertical_slash attends every key of a prompt this short; what it is compared with may not."""
    layer = random_layer(200)
    assert parse("vertical_slash(40,60)").stats(layer).is_dense.all()
    for text in ("only_vertical(40)", "only_slash(60)", "static(40,60)"):
        assert not parse(text).stats(layer).is_dense.any()


# ---- Methods that remember -----------------------------------------------------------------------


def static_lines(layer: Layer, head: int) -> reference.Lines:
    keys = layer.k[0, kv_head(layer, head)]
    sizes = reference.VerticalSlash(40, 103)
    vertical, slash, _ = reference.estimate_lines(layer.q[0, head], keys, sizes, layer.scale)
    return reference.Lines(tuple(vertical), tuple(slash))


def static_blocks(layer: Layer, head: int) -> list[list[int]]:
    keys = layer.k[0, kv_head(layer, head)]
    return reference.block_top_k(layer.q[0, head], keys, 2)[0]


def moved(blocks: list[list[int]], count: int) -> list[list[int]]:
    """Of `count` row blocks: those there are, then the last one's along the diagonal."""
    last = len(blocks) - 1
    return [blocks[m] if m <= last else [n + m - last for n in blocks[last]] for m in range(count)]


FIRST_THEN = [
    (900, 900),
    (900, 1000),
    (900, 850),
    (200, 1000),
    (70, 900),
    (1000, 130),
    (900, 20),
    (1, 129),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first_length", "then_length"), FIRST_THEN)
def test_static_attends_lines_of_the_first_prompt(
    first_length: int, then_length: int, dtype: torch.dtype
) -> None:
    method = parse("static(40,103)")
    estimate = by_pattern(reference.VerticalSlash(40, 103))
    first, _ = clear_layer(estimate, q_len=first_length, dtype=dtype, softmax_scale=0.2)
    then = random_layer(then_length, seed=99, dtype=dtype, softmax_scale=0.2)
    for layer in (first, then):
        kv_len = layer.k.shape[2]
        masks = []
        for head in range(4):
            lines = static_lines(first, head).within(kv_len)
            masks.append(reference.vertical_slash_mask(kv_len, kv_len, lines.vertical, lines.slash))
        check_layer(method, layer, torch.stack(masks))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("first_length", "then_length"), FIRST_THEN)
def test_static_attends_blocks_of_the_first_prompt(
    first_length: int, then_length: int, dtype: torch.dtype
) -> None:
    method = parse("static_block_sparse(2)")
    first, mask = clear_layer(
        by_pattern(reference.BlockSparse(2)), q_len=first_length, kv_heads=1, dtype=dtype
    )
    check_layer(method, first, mask)
    layer = random_layer(then_length, kv_heads=1, seed=99, dtype=dtype)
    count = -(-then_length // 64)
    masks = [
        reference.block_mask(then_length, then_length, moved(static_blocks(first, head), count))
        for head in range(4)
    ]
    check_layer(method, layer, torch.stack(masks))


REMEMBERING = ["static(40,103)", "static_block_sparse(2)"]


@pytest.mark.parametrize("text", REMEMBERING)
def test_the_first_prompt_is_attended_as_without_memory(text: str) -> None:
    plain = parse(text.replace("static_", "").replace("static", "vertical_slash"))
    for length in (64, 65, 900):
        layer = random_layer(length)
        method = parse(text)
        for found, expected in zip(method.attend(layer), plain.attend(layer), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", REMEMBERING)
def test_memory_belongs_to_layer_head_and_object(text: str) -> None:
    first, then = random_layer(900, seed=1), random_layer(900, seed=2)
    fresh, _ = parse(text).attend(then)
    method, other = parse(text), parse(text)
    method.stats(first)
    assert not torch.equal(method.attend(then)[0], fresh)
    assert torch.equal(other.attend(then)[0], fresh)  # an equal object has met no other prompt
    layer_one = dataclasses.replace(then, layer_idx=1)
    assert torch.equal(method.attend(layer_one)[0], fresh)  # nor has another layer
    method.forget()
    assert torch.equal(method.attend(then)[0], fresh)
    assert repr(method).count("(") == str(method).count("(") == 1  # without what it remembers
    method.forget()
    method.attend(first.heads([1, 2]))
    out, _ = method.attend(then)  # heads 0 and 3 learn from this prompt
    for head, is_fresh in enumerate((True, False, False, True)):
        assert torch.allclose(out[:, head], fresh[:, head], atol=1e-6) == is_fresh


@pytest.mark.parametrize("text", REMEMBERING)
def test_heads_with_objects_of_their_own_remember_apart(text: str) -> None:
    first, then = random_layer(900, seed=1), random_layer(900, seed=2)
    one, two = parse(text), parse(text)
    assert one != two
    heads = [one, two, one, two]
    attend_heads(heads, first)
    two.forget()
    out, _ = attend_heads(heads, then)
    fresh, _ = parse(text).attend(then)
    for head in range(4):
        assert torch.allclose(out[:, head], fresh[:, head], atol=1e-6) == (heads[head] is two)


def test_the_first_to_learn_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two threads that meet an object at once, both use what the first one wrote down."""
    first, late = random_layer(900, seed=1), random_layer(900, seed=2)
    method = parse("static_block_sparse(2)")
    learn = StaticBlockSparse.learn

    def slow(self: StaticBlockSparse, layer: Layer) -> tuple[Tensor, ...]:
        monkeypatch.undo()
        method.stats(first)  # another thread's prompt, while this one's is looked at
        return learn(self, layer)

    monkeypatch.setattr(StaticBlockSparse, "learn", slow)
    found, _ = method.attend(late)
    expected, _ = method.attend(late)
    assert torch.equal(found, expected)
    assert not torch.equal(found, parse("static_block_sparse(2)").attend(late)[0])


def test_what_is_remembered_is_bounded() -> None:
    method: Any = parse("static_block_sparse(2)")
    method.attend(random_layer(900))
    assert sorted(method.memory) == [(0, head) for head in range(4)]
    for (blocks,) in method.memory.values():
        assert blocks.dtype == torch.int32
        assert blocks.shape == (15, 2)
        assert blocks.untyped_storage().nbytes() == 15 * 2 * 4
