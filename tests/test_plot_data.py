"""The data behind pictures, and the numbers and names in them: by hand and against the oracle."""

from __future__ import annotations

import math

import pytest
import torch
from minference_ext.benchmark.crossover import PAYS, crossover
from minference_ext.benchmark.inputs import Shape, prompt_like
from minference_ext.plots.attention_maps import Strip, cell_of, map_of_strips
from minference_ext.plots.canvas import about, every, in_lines, percent, shortened, tokens
from minference_ext.plots.observations import distance_shares, marks
from minference_ext.plots.times import _time_ticks

from . import reference

# ---- Maps ----------------------------------------------------------------------------------------


def test_attention_map_by_hand() -> None:
    """Four queries in two blocks; the pattern attends the diagonal and key 0."""
    probability = torch.tensor(
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.7, 0.1, 0], [0.3, 0.1, 0.2, 0.4]]
    )
    mask = torch.eye(4, dtype=torch.bool)
    mask[:, 0] = True
    whole = [Strip(0, probability, mask)]
    head = map_of_strips(1, 5, "sink", "by hand", 4, whole, cells=2, num_last=1)
    assert head.attended_share == pytest.approx(7 / 10)
    assert head.recall == pytest.approx((1 + 1 + 0.3 + 0.7) / 4)
    assert head.recall_last == pytest.approx(0.7)
    expected = torch.tensor([[1, 0], [2 / 4, 2 / 3]])
    torch.testing.assert_close(head.attended, expected)
    torch.testing.assert_close(head.kept, torch.tensor([[1, 0], [0.3, 0.4]]))
    torch.testing.assert_close(head.missed, torch.tensor([[0, 0], [0.7, 0.2]]))


def test_maps_of_strips_are_those_of_a_whole_matrix() -> None:
    """100 queries in cells of 7 tokens, the last of 2; strips of one, two and three cells."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(100, 100, generator=generator).tril()
    mask = (torch.rand(100, 100, generator=generator) < 0.3).tril()
    strips = [
        Strip(first, probability[first:, first:end], mask[first:, first:end])
        for first, end in ((0, 7), (7, 21), (21, 42), (42, 63), (63, 84), (84, 98), (98, 100))
    ]
    assert cell_of(100, 15) == 7
    found = map_of_strips(2, 3, "", "by hand", 100, strips, cells=15, num_last=10)
    assert found.attended_share == pytest.approx(int(mask.sum()) / 5050)
    assert found.recall == pytest.approx(float((probability * mask).sum()) / 100)
    assert found.recall_last == pytest.approx(float((probability * mask)[90:].sum()) / 10)
    for row in range(15):
        for column in range(15):
            cells = (
                slice(7 * row, min(100, 7 * row + 7)),
                slice(7 * column, min(100, 7 * column + 7)),
            )
            part, attended = probability[cells], mask[cells]
            causal = torch.ones(100, 100, dtype=torch.bool).tril()[cells]
            kept, missed = (part * attended).max(), (part * ~attended).max()
            assert found.kept[row, column] == kept
            assert found.missed[row, column] == missed
            assert float(found.attended[row, column]) == pytest.approx(
                int(attended.sum()) / max(1, int(causal.sum()))
            )


def test_a_map_without_known_pairs() -> None:
    strips = [Strip(0, torch.eye(4), None)]
    found = map_of_strips(0, 0, "", "-", 4, strips, cells=4, num_last=1)
    assert found.attended_share is None
    assert not found.attended.any()
    assert not found.missed.any()
    assert torch.equal(found.kept, torch.eye(4))


# ---- Crossovers and inputs -----------------------------------------------------------------------


def test_crossover() -> None:
    lengths = [1024, 2048, 4096, 8192]
    assert crossover(lengths, [0.5, 0.9, 1.0, 1.04]) is None
    assert crossover(lengths, [2.0, 1.0, 3.0, 1.0]) is None  # not for long
    assert crossover(lengths, [1.1, 1.2, 1.3, 1.4]) == 1024
    assert crossover(lengths, [0.9, PAYS, 2.0, 4.0]) == pytest.approx(2048)
    # Midway on logarithmic axes.
    assert crossover(lengths, [1.0, PAYS / 2, PAYS * 2, 4.0]) == pytest.approx(2048 * math.sqrt(2))
    # The last time it begins to pay counts.
    assert crossover(lengths, [3.0, 0.5, 0.9, 1.2]) == pytest.approx(
        4096 * 2 ** (math.log(PAYS / 0.9) / math.log(1.2 / 0.9))
    )
    with pytest.raises(ValueError, match="one per length"):
        crossover(lengths, [1.0])


def test_crossover_of_synthetic_times() -> None:
    """n^2 against 3 n (n_0 = 3 / PAYS of the way): found between the lengths."""
    lengths = [256, 512, 1024, 2048]
    dense = [float(length**2) for length in lengths]
    linear = [700.0 * length for length in lengths]
    speedups = [base / own for base, own in zip(dense, linear, strict=True)]
    assert crossover(lengths, speedups) == pytest.approx(700 * PAYS)


def test_inputs_have_lines() -> None:
    """Few lines keep most of the attention, and the first keys draw much of it."""
    length = 2048
    q, k, _ = (tensor[0, 0] for tensor in prompt_like(Shape(1, 1, 64), length, torch.float32, 1))
    mask, _ = reference.head_mask(reference.VerticalSlash(200, 200), q, k, 1 / 8)
    scores = (q @ k.T / 8).masked_fill(~reference.dense_mask(length, length), -math.inf)
    attention = scores.softmax(dim=-1)
    assert float((attention * mask).sum() / length) > 0.8
    assert float(mask.sum()) < 0.6 * length**2 / 2
    assert float(attention[length // 2 :, :4].sum(-1).mean()) > 0.02


def test_inputs_follow_shape_and_seed() -> None:
    shape = Shape(num_heads_q=4, num_heads_kv=2, head_dim=16)
    q, k, v = prompt_like(shape, 100, torch.bfloat16, seed=1)
    assert q.shape == (1, 4, 100, 16)
    assert k.shape == v.shape == (1, 2, 100, 16)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert torch.equal(q, prompt_like(shape, 100, torch.bfloat16, seed=1)[0])
    assert not torch.equal(q, prompt_like(shape, 100, torch.bfloat16, seed=2)[0])


# ---- Numbers and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [(300, "300"), (1024, "1K"), (3000, "3000"), (100000.0, "100000"), (1 << 17, "128K"),
     (1 << 20, "1M"), (1025 << 10, "1025K")],
)  # fmt: skip
def test_tokens(count: float, text: str) -> None:
    """What an axis or a title says is what was measured."""
    assert tokens(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(300.4, "300"), (1024, "1K"), (2150, "2.1K"), (5140, "5K"), (52000, "51K"), (1 << 20, "1M")],
)
def test_about(count: float, text: str) -> None:
    assert about(count) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0%"), (0.00004, "0.0%"), (0.0004, "<0.1%"), (0.0005, "0.1%"), (0.12345, "12.3%"),
     (0.9994, "99.9%"), (0.9996, ">99.9%"), (0.99996, "100.0%"), (1.0, "100.0%"), (1.03, "103.0%"),
     (math.nan, "-")],
)  # fmt: skip
def test_percent(share: float, text: str) -> None:
    """What misses something does not read 100.0%."""
    assert percent(share) == text


def test_names_in_lines() -> None:
    assert in_lines("a_shape(1,2)", 20) == "a_shape(1,2)"
    assert in_lines("vertical_slash(1000,6096)", 20) == "vertical_slash(1000,\n6096)"
    assert in_lines("one(1111,2222,3333,4444)", 10) == "one(1111,\n2222,33..."


@pytest.mark.parametrize(
    ("text", "expected"),
    [("short", "short"), ("a\nb\tc\x00d", "a b c d"), ("0123456789", "01234..."), ("  ", "")],
)
def test_shortened(text: str, expected: str) -> None:
    assert shortened(text, 8) == expected


def test_every() -> None:
    assert [every(count, 8) for count in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (35, 2100, [50, 100, 200, 500, 1000, 2000]),
        (0.9, 2e4, [1, 10, 100, 1000, 10000]),
        (71, 82, [72, 74, 76, 78, 80, 82]),
        (0.0011, 0.00195, [0.0012, 0.0014, 0.0016, 0.0018]),
        (3.0, 8.5, [3, 4, 5, 6, 7, 8]),
    ],
)
def test_ticks_of_times(low: float, high: float, ticks: list[float]) -> None:
    """Three or more wherever times lie, and never so many that they overlap."""
    assert _time_ticks(low, high) == pytest.approx(ticks)


def test_marks_of_the_paper() -> None:
    assert [marks(length) for length in (64, 4096, 8192, 131072)] == [
        [2],
        [128],
        [256, 4096],
        [4096],
    ]


def test_distances_of_heads_without_any() -> None:
    assert distance_shares([[0, 0], [0, 0]]) == [0.0, 0.0]
