"""The parts of the offline search: equal cost, what patterns lose, the choice, both objectives and
the refinement, each against a brute force of its own."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from minference_ext import HeadPattern
from minference_ext.benchmark.inputs import Shape, prompt_like
from minference_ext.methods import Layer, LayerIndex
from minference_ext.search import SearchSettings, equalise, size_ladder, tile_cost, time_cost
from minference_ext.search import search as search_module
from minference_ext.search import upstream as upstream_module
from minference_ext.search.choose import Candidate, choose
from minference_ext.search.equal_cost import cost_of
from minference_ext.search.measure import Dense, Lines, count_lines, measure, rounding_error
from minference_ext.search.refine import refine
from torch import Tensor

from tests import reference
from tests.check import MIN_GAP

LINES, BLOCKS, WINDOW = HeadPattern.vertical_slash, HeadPattern.block_sparse, HeadPattern.a_shape
DTYPES = (torch.float32, torch.bfloat16)


def layer_of(
    length: int,
    dtype: torch.dtype = torch.float32,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 64,
    seed: int = 0,
) -> Layer:
    """A layer with columns and diagonals; v is random."""
    return Layer(*prompt_like(Shape(*heads, head_dim), length, dtype, seed))


def random_layer(
    length: int, dtype: torch.dtype, heads: tuple[int, int], head_dim: int, seed: int = 0
) -> Layer:
    """Gaussian q, k and v: no two lines score alike, and patterns lose much."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        return torch.randn(1, count, length, head_dim, generator=generator).to(dtype)

    return Layer(3 * draw(heads[0]), draw(heads[1]), draw(heads[1]))


def mask_of(layer: Layer, head: int, pattern: HeadPattern) -> tuple[Tensor, float]:
    """Attended pairs of one head by the oracle, and how close its closest decision was."""
    kinds = {
        "dense": reference.Dense,
        "a_shape": reference.AShape,
        "vertical_slash": reference.VerticalSlash,
        "block_sparse": reference.BlockSparse,
    }
    q, k = layer.q[0, head], layer.k[0, head * layer.k.shape[1] // layer.num_heads]
    return reference.head_mask(kinds[pattern.kind](*pattern.sizes), q, k, layer.scale)


def exact(layer: Layer, head: int, mask: Tensor) -> tuple[Tensor, Tensor]:
    """out and lse of one head under a mask, in float64."""
    kv_head = head * layer.k.shape[1] // layer.num_heads
    return reference.attention(
        layer.q[0, head], layer.k[0, kv_head], layer.v[0, kv_head], mask, layer.scale
    )


def index_of(patterns: Sequence[HeadPattern]) -> LayerIndex:
    return LayerIndex(tuple(patterns), dense_fallback=False)


# ---- Ladders and equal cost ----------------------------------------------------------------------


def sizes_of(ladder: list[HeadPattern]) -> list[tuple[int, ...]]:
    return [rung.sizes for rung in ladder]


def test_ladder_changes_the_larger_size_then_the_other() -> None:
    ladder = sizes_of(size_ladder(LINES(130, 300), 500, 100))
    assert ladder == [(30, 100), (130, 100), (130, 200), (130, 300), (130, 400), (130, 500)]
    ladder = sizes_of(size_ladder(LINES(300, 200), 420, 100))
    assert ladder == [
        (30, 100),
        (30, 200),
        (100, 200),
        (200, 200),
        (300, 200),
        (400, 200),
        (420, 200),
    ]


@pytest.mark.parametrize(
    ("pattern", "length", "first", "last"),
    [
        (LINES(3000, 200), 1000, (30, 100), (1000, 200)),  # cut to the prompt
        (LINES(30, 2048), 90, (30, 90), (30, 90)),  # shorter than the diagonals that are forced
        (LINES(0, 70), 300, (0, 70), (0, 300)),  # starts below the least sizes
        (WINDOW(1024, 4096), 6000, (0, 64), (1024, 6000)),
        (WINDOW(0, 10), 64, (0, 10), (0, 64)),
        (BLOCKS(100), 65, (1,), (2,)),
        (HeadPattern.tri_shape(8, 512, 128), 2000, (0, 64, 128), (8, 2000, 128)),
        (HeadPattern.dense(), 10, (), ()),
    ],
    ids=str,
)
def test_ladder_ends(
    pattern: HeadPattern, length: int, first: tuple[int, ...], last: tuple[int, ...]
) -> None:
    ladder = size_ladder(pattern, length, 50)
    assert (ladder[0].sizes, ladder[-1].sizes) == (first, last)
    assert {rung.kind for rung in ladder} == {pattern.kind}
    assert len(set(ladder)) == len(ladder)
    for low, high in itertools.pairwise(ladder):
        assert all(a <= b for a, b in zip(low.sizes, high.sizes, strict=True))
    if max(pattern.sizes[:2], default=0) <= length and pattern.kind != "block_sparse":
        assert pattern in ladder


def test_ladder_refuses_given_lists() -> None:
    with pytest.raises(ValueError, match="vertical_slash_index, whose lines or blocks are given"):
        size_ladder(HeadPattern.vertical_slash_index(), 100, 50)


@given(
    steps=st.lists(st.integers(0, 40), min_size=20, max_size=20),
    target=st.floats(1.0, 600.0),
    start=st.integers(1, 20),
    tolerance=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_equalise_finds_the_target_or_straddles_it(
    steps: list[int], target: float, start: int, tolerance: float
) -> None:
    """On any costs that grow with the size, of two heads with different targets."""
    costs = list(itertools.accumulate(steps, initial=0))[1:]
    nothing = torch.zeros(1, 2, 64 * len(costs), 8)
    layer = Layer(nothing, nothing, nothing)
    targets = [target, target / 2]
    found = equalise(
        layer,
        [BLOCKS(start)] * 2,
        targets,
        cost=lambda patterns: [float(costs[one.sizes[0] - 1]) for one in patterns],
        tolerance=tolerance,
    )
    for one, wanted in zip(found, targets, strict=True):
        rung = one.pattern.sizes[0] - 1
        assert one.cost == costs[rung]
        if abs(one.cost - wanted) <= tolerance * wanted:
            assert one.fits
        elif one.cost < wanted:
            assert one.fits
            assert rung == len(costs) - 1 or costs[rung + 1] > wanted * (1 + tolerance)
        else:
            assert rung == 0
            assert not one.fits


def test_a_pattern_that_costs_the_target_stays() -> None:
    layer = layer_of(512)
    patterns = [LINES(70, 190), WINDOW(10, 100), BLOCKS(3), HeadPattern.dense()]
    costs = tile_cost(layer)(patterns)
    found = equalise(layer, patterns, costs)
    assert [one.pattern for one in found] == patterns
    assert [one.cost for one in found] == costs


@pytest.mark.parametrize("length", [500, 1024])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1)], ids=["mha", "gqa"])
def test_tile_cost_holds_what_the_mask_needs(length: int, heads: tuple[int, int]) -> None:
    """Each row block multiplies 64 rows by the keys that any of them attends, in whole pieces."""
    layer = random_layer(length, torch.float32, heads, 64, seed=1)
    patterns = [WINDOW(40, 150), LINES(60, 130), BLOCKS(4), HeadPattern.dense()]
    for head, (pattern, cost) in enumerate(zip(patterns, tile_cost(layer)(patterns), strict=True)):
        mask, gap = mask_of(layer, head, pattern)
        assert gap >= MIN_GAP
        keys = [int(rows.any(0).sum()) for rows in mask.split(64)]
        assert 64 * sum(keys) <= cost
        if pattern.kind != "vertical_slash":  # two or three runs of keys, 32 wide pieces of each
            assert cost <= 64 * sum(count + 4 * 32 for count in keys)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_cost_on_a_prompt(dtype: torch.dtype) -> None:
    layer = layer_of(2000, dtype)
    targets = tile_cost(layer)([WINDOW(64, 256)] * 4)
    for wanted in (LINES(30, 2048), LINES(500, 150), BLOCKS(100)):
        for head, one in enumerate(equalise(layer, [wanted] * 4, targets, step=10)):
            ladder = size_ladder(wanted, 2000, 10)
            patterns = [one.pattern] * 4
            assert tile_cost(layer)(patterns)[head] == one.cost
            if not one.fits:
                assert one.pattern == ladder[0]
            elif abs(one.cost - targets[head]) > 0.02 * targets[head]:
                dearer = ladder[ladder.index(one.pattern) + 1]
                assert one.cost < targets[head] < tile_cost(layer)([dearer] * 4)[head]


def test_time_cost_is_of_each_head_alone() -> None:
    layer = layer_of(2048)
    cost = time_cost(layer)
    patterns = [WINDOW(0, 64), HeadPattern.dense(), WINDOW(0, 64), HeadPattern.dense()]
    seconds = cost(patterns)
    assert all(one > 0 for one in seconds)
    assert cost(patterns) == seconds  # measured once
    assert cost_of("tiles", layer)(patterns) == tile_cost(layer)(patterns)
    found = equalise(layer, [LINES(30, 500)] * 4, seconds, cost=cost_of("time", layer))
    assert all(one.pattern in size_ladder(LINES(30, 500), 2048, 50) for one in found)


# ---- Errors, recalls, lines ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("length", "heads", "head_dim"),
    [
        pytest.param(450, (4, 4), 64, id="450-mha"),  # the last row block is not full
        pytest.param(512, (4, 2), 128, id="512-group2"),
        pytest.param(331, (4, 1), 64, id="331-group4"),
    ],
)
def test_measure(length: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    layer = random_layer(length, dtype, heads, head_dim, seed=2)
    patterns = [WINDOW(20, 90), LINES(40, 110), BLOCKS(3), HeadPattern.dense()]
    first = 100
    dense = Dense.of(layer)
    found = measure(layer, dense, index_of(patterns))
    later = measure(layer, dense, index_of(patterns), first_recalled=first)
    rounding = rounding_error(layer)
    for head, pattern in enumerate(patterns):
        mask, gap = mask_of(layer, head, pattern)
        assert gap >= MIN_GAP
        y, lse = exact(layer, head, reference.dense_mask(length, length))
        y_c, lse_c = exact(layer, head, mask)
        kept = (lse_c - lse).exp()
        error = float((y_c - y).norm() / y.norm())
        assert found[head].error == pytest.approx(error, rel=1e-2, abs=rounding)
        assert found[head].recall == pytest.approx(float(kept.mean()), abs=1e-4)
        assert later[head].recall == pytest.approx(float(kept[first:].mean()), abs=1e-4)
        assert later[head].error == found[head].error
        assert found[head].computed_share >= float(mask.sum()) / (length * (length + 1) / 2)
    assert found[0].error > 0.2  # or nothing was left out
    assert found[3].error <= rounding


def test_a_query_without_keys_recalls_nothing() -> None:
    """Rows of no window and no sink have lse -inf and output 0."""
    layer = random_layer(128, torch.float32, (1, 1), 64)
    (found,) = measure(layer, Dense.of(layer), index_of([WINDOW(0, 0)]))
    assert (found.error, found.recall, found.computed_share) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_errors_of_a_head_that_writes_nothing_are_nothing(dtype: torch.dtype) -> None:
    """It rests on a first key whose value is zero, so its output is smaller than the rounding of
    what it averages; relative to it alone, leaving out what it does not look at would cost all."""
    length = 400
    q = torch.full((1, 1, length, 64), 3.0)
    k = torch.full((1, 1, length, 64), -2.0)
    k[:, :, 0] = 2.0
    v = torch.randn(1, 1, length, 64)
    v[:, :, 0] = 0.0
    layer = Layer(q.to(dtype), k.to(dtype), v.to(dtype))
    dense = Dense.of(layer)
    assert 0.0 < float(dense.out.double().norm()) < 1e-20
    (found,) = measure(layer, dense, index_of([WINDOW(1, 64)]))
    assert found.error <= rounding_error(layer)
    nothing = Layer(layer.q, layer.k, torch.zeros_like(layer.v))
    (found,) = measure(nothing, Dense.of(nothing), index_of([WINDOW(1, 64)]))
    assert found.error == 0.0


def brute_lines(columns: list[float], diagonals: list[float]) -> tuple[int, int, int]:
    """As `Lines`, by trying all."""
    length = len(columns)

    def alone(probabilities: list[float]) -> int:
        best = sorted(probabilities, reverse=True)
        return next(n for n in range(1, length + 1) if sum(best[:n]) >= 0.95)

    sums = [
        sink + window
        for sink in range(length + 1)
        for window in range(length + 1)
        if sum(columns[:sink]) + sum(diagonals[:window]) >= 0.95
    ]
    return min(sums), alone(columns), alone(diagonals)


@pytest.mark.parametrize("length", [40, 100])  # fewer queries than an estimation has, and more
def test_count_lines(length: int) -> None:
    layer = random_layer(length, torch.float32, (4, 2), 64, seed=3)
    for head, found in enumerate(count_lines(layer)):
        q, k = layer.q[0, head], layer.k[0, head // 2]
        columns, diagonals = reference.vs_scores(q, k, layer.scale)
        queries = min(64, length)
        expected = brute_lines((columns / queries).tolist(), (diagonals / queries).tolist())
        assert dataclasses.astuple(found) == expected


# ---- The choice ----------------------------------------------------------------------------------

LOCAL, SLASH, VERTICAL = Lines(10, 70, 9), Lines(2, 60, 1), Lines(900, 6, 80)
BUDGET = WINDOW(128, 512)
MANY_DIAGONALS, MANY_COLUMNS = LINES(30, 600), LINES(500, 100)
BLOCK = BLOCKS(11)


@pytest.mark.parametrize(
    ("errors", "lines", "winner", "reason"),
    [
        pytest.param((0.5, 0.1, 0.3, 0.3), LOCAL, 1, "least error", id="alone"),
        pytest.param((0.5, 0.3, 0.3, 0.1), LOCAL, 3, "least error", id="blocks-alone"),
        pytest.param((0.9, 0.9, 0.418, 0.4), VERTICAL, 2, "vertical: 6 columns", id="blocks-tie"),
        pytest.param(
            (0.418, 0.4, 0.9, 0.9), LOCAL, 0, "within 5 % of the least error", id="a_shape-tie"
        ),
        pytest.param((0.422, 0.4, 0.9, 0.9), LOCAL, 1, "least error", id="no-tie"),
        pytest.param((9e-3, 1e-3, 1e-3, 0.0), LOCAL, 0, "within rounding", id="all-rounding"),
        pytest.param((0.0, 9e-3, 9e-3, 0.0), SLASH, 1, "slash: 1 diagonal holds 95 %", id="slash"),
        pytest.param((0.5, 9e-3, 0.0, 0.5), SLASH, 1, "slash: 1 diagonal", id="most-diagonals"),
        pytest.param((0.5, 0.0, 9e-3, 0.5), VERTICAL, 2, "6 columns hold 95 %", id="most-columns"),
        pytest.param((0.0, 0.0, 0.5, 0.0), Lines(10, 6, 6), 0, "no estimation", id="over-half"),
        pytest.param((0.0, 0.0, 0.5, 0.0), Lines(12, 6, 7), 1, "6 columns", id="exactly-half"),
        pytest.param((0.0, 0.5, 0.5, 0.0), SLASH, 0, "no estimation", id="lines-not-among-equals"),
    ],
)
def test_choose(errors: tuple[float, ...], lines: Lines, winner: int, reason: str) -> None:
    """Candidates: a_shape, many diagonals, many columns, blocks; rounding is 0.01."""
    patterns = (BUDGET, MANY_DIAGONALS, MANY_COLUMNS, BLOCK)
    candidates = [
        Candidate(pattern, error, 1.0, 0.3) for pattern, error in zip(patterns, errors, strict=True)
    ]
    found, why = choose(candidates, lines, 0.01)
    assert found is candidates[winner]
    assert reason in why


def test_a_candidate_beyond_the_budget_is_out() -> None:
    candidates = [Candidate(BUDGET, 0.9, 0.1, 0.3), Candidate(LINES(30, 100), 0.0, 1.0, 0.9, False)]
    assert choose(candidates, VERTICAL, 0.01) == (candidates[0], "least error")


def test_equals_of_blocks_alone() -> None:
    """Several block_sparse candidates, which only own settings have: the least error."""
    candidates = [
        Candidate(BUDGET, 0.9, 0.1, 0.3),
        Candidate(BLOCKS(3), 0.101, 1.0, 0.3),
        Candidate(BLOCKS(4), 0.1, 1.0, 0.3),
    ]
    assert choose(candidates, LOCAL, 0.01)[0] is candidates[2]


# ---- Upstream's objective ------------------------------------------------------------------------


def upstream_recalls(layer: Layer, head: int) -> list[float]:
    """Mean recall of the later queries inside the masks of SPEC's search, all N x N, in float64:
    stream_llm, four vertical_and_slash, an eighth of the blocks."""
    q = layer.q[0, head].double()
    k = layer.k[0, head * layer.k.shape[1] // layer.num_heads].double()
    length = len(q)
    rows = slice(2500 if length >= 5000 else length // 2, None)
    o = reference.offsets(length, length)[rows]
    logits = (q[rows] @ k.T * layer.scale).masked_fill(o < 0, -math.inf)
    probabilities = torch.softmax(logits, dim=-1)
    j = torch.arange(length)

    columns, diagonals = reference.vs_scores(q, k, layer.scale)
    masks = [(j < 100) | (o <= 800)]
    for num_columns, num_diagonals in ((30, 800), (100, 750), (500, 700), (3500, 100)):
        vertical, v_gap = reference.select_lines(columns, num_columns, 0, 30)
        slash, s_gap = reference.select_lines(diagonals, num_diagonals, 0, 30)
        assert min(v_gap, s_gap) >= 1e-6, "a selection is too close; change the seed"
        is_slash = torch.zeros(length, dtype=torch.bool)
        is_slash[slash] = True
        mask = is_slash[o.clamp(min=0)]
        mask[:, vertical] = True
        masks.append(mask)
    blocks, gap = reference.block_top_k(q, k, max(1, math.ceil(length / 64) // 8))
    assert gap >= 1e-6
    masks.append(reference.block_mask(length, length, blocks)[rows])
    return [float((probabilities * mask).sum()) / len(o) for mask in masks]


@pytest.mark.parametrize(
    ("length", "heads"),
    [pytest.param(1500, (2, 1), id="short"), pytest.param(5056, (1, 1), id="from-query-2500")],
)
def test_upstream_recalls(length: int, heads: tuple[int, int]) -> None:
    layer = random_layer(length, torch.float32, heads, 64, seed=4)
    found = upstream_module.candidates(layer, Dense.of(layer))
    for head, of_head in enumerate(found):
        recalls = [candidate.recall for candidate in of_head]
        assert recalls == pytest.approx(upstream_recalls(layer, head), abs=1e-4)
        kinds = [candidate.pattern.kind for candidate in of_head]
        assert kinds == ["a_shape", *["vertical_slash"] * 4, "block_sparse"]
    assert min(one.recall for of_head in found for one in of_head) < 0.9


@pytest.mark.parametrize(
    ("recalls", "written", "reason"),
    [
        ((0.9, 0.8, 0.8, 0.8, 0.8, 0.5), LINES(100, 800), "for stream_llm(100,800), which is"),
        ((0.2, 0.8, 0.9, 0.8, 0.8, 0.5), LINES(100, 750), "highest recall"),
        ((0.2, 0.1, 0.1, 0.1, 0.1, 0.5), LINES(1000, 6096), "for block_sparse(7), which is"),
        ((0.5, 0.9, 0.9, 0.1, 0.1, 0.5), LINES(30, 800), "highest recall"),  # a tie: the first
    ],
)
def test_upstream_choice(recalls: tuple[float, ...], written: HeadPattern, reason: str) -> None:
    patterns = [upstream_module.STREAM_LLM, *upstream_module.VERTICAL_SLASH, BLOCKS(7)]
    candidates = [
        Candidate(pattern, 0.5, recall, 0.3)
        for pattern, recall in zip(patterns, recalls, strict=True)
    ]
    found, score, why = upstream_module.choose(candidates)
    assert (found, score) == (written, max(recalls))
    assert reason in why


# ---- Refinement ----------------------------------------------------------------------------------


def test_refine_reaches_the_recall() -> None:
    layer = random_layer(600, torch.float32, (4, 2), 64, seed=5)
    patterns = [LINES(30, 100), WINDOW(10, 64), BLOCKS(2), HeadPattern.dense()]
    starts = [LINES(30, 110)] * 4
    found = refine(layer, Dense.of(layer), patterns, starts, 0.8, (40, 20))
    for head, (one, pattern) in enumerate(zip(found, patterns, strict=True)):
        mask, _ = mask_of(layer, head, one.pattern)
        lse = exact(layer, head, reference.dense_mask(600, 600))[1]
        recall = float((exact(layer, head, mask)[1] - lse).exp().mean())
        assert one.after.recall == pytest.approx(recall, abs=1e-3)
        assert one.after.recall >= 0.8
        if one.before.recall >= 0.8:
            assert one.pattern == pattern
            assert one.after == one.before
            continue
        start = pattern if pattern.kind == "vertical_slash" else starts[head]
        rounds = (one.pattern.sizes[0] - start.sizes[0]) / 40
        assert one.pattern == LINES(
            start.sizes[0] + 40 * int(rounds), start.sizes[1] + 20 * int(rounds)
        )
        if rounds >= 1:  # one round fewer was not enough
            fewer = LINES(one.pattern.sizes[0] - 40, one.pattern.sizes[1] - 20)
            alone = measure(layer.heads([head]), Dense.of(layer).heads([head]), index_of([fewer]))
            assert alone[0].recall < 0.8
    assert sum(one.before.recall < 0.8 for one in found) == 3
    assert found[3].before.recall == pytest.approx(1.0)


def test_refine_ends_at_the_prompt() -> None:
    layer = random_layer(300, torch.float32, (2, 1), 64, seed=6)
    found = refine(
        layer, Dense.of(layer), [LINES(30, 100)] * 2, [LINES(30, 100)] * 2, 0.9999999, (100, 0)
    )
    assert [one.pattern for one in found] == [LINES(300, 100)] * 2
    assert [one.after.recall for one in found] == pytest.approx([1.0, 1.0])


# ---- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "speed"}, "objective: found 'speed'; it must be one of output, upstream"),
        ({"cost": "flops"}, "cost: found 'flops'; it must be one of tiles, time"),
        ({"sink": 0, "window": 0}, "budget: found (0, 0); it must be two whole numbers >= 0"),
        ({"sink": -1}, "budget: found (-1, 4096)"),
        ({"window": 1.5}, "budget: found (1024, 1.5)"),
        ({"step": 0}, "step: found 0; it must be a whole number >= 1"),
        ({"candidates": (WINDOW(1, 2),)}, "candidates: found ['a_shape']; it must be of kinds"),
        ({"refine": 1.0}, "refine: found 1.0; it must be None or a recall between 0 and 1"),
        ({"refine": 0.9, "candidates": (BLOCKS(3),)}, "some of vertical_slash, which refine makes"),
        ({"refine_step": (0, 0)}, "refine_step: found (0, 0)"),
    ],
)
def test_settings_refuse(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the sentence is what is checked
        SearchSettings(**fields)  # type: ignore[arg-type]
    assert words in str(error.value)


def test_candidates_have_equal_cost_and_are_measured() -> None:
    layer = layer_of(1000)
    settings = SearchSettings(sink=64, window=200, step=10)
    dense = Dense.of(layer)
    found = search_module.equal_candidates(layer, dense, settings)
    assert len(found) == 1 + len(settings.candidates)
    assert [one.pattern for one in found[0]] == [WINDOW(64, 200)] * 4
    for of_heads in found:
        measured = measure(layer, dense, index_of([one.pattern for one in of_heads]))
        for one, same in zip(of_heads, measured, strict=True):
            assert (one.error, one.recall, one.computed_share) == dataclasses.astuple(same)
            if one.is_within_budget:
                assert one.computed_share <= found[0][0].computed_share * 1.02
