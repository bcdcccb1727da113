"""Pictures: the data behind them against the oracle and by hand, and that each becomes a PNG."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, plan_stats
from minference_ext.attended import attended_mask
from minference_ext.benchmark.crossover import PAYS, crossover
from minference_ext.benchmark.inputs import Shape, prompt_like
from minference_ext.demo.head_maps import probabilities
from minference_ext.plots import (
    draw_attention_maps,
    draw_breakdown,
    draw_density,
    draw_head_patterns,
    draw_observations,
    draw_retrieval,
    draw_scores,
    draw_times,
)
from minference_ext.plots.attention_maps import (
    AttentionMap,
    Strip,
    attention_map,
    cell_of,
    map_of_strips,
)
from minference_ext.plots.breakdown import Spent
from minference_ext.plots.canvas import BLUE, ORANGE, canvas, every, shortened, tokens
from minference_ext.plots.observations import Coverage, distance_shares, marks
from minference_ext.plots.retrieval import Retrieval
from minference_ext.plots.scores import ScoreRow
from minference_ext.plots.times import Curve
from torch import Tensor

from . import reference

HEAD_DIM = 64
SHAPE = Shape(num_heads_q=1, num_heads_kv=1, head_dim=HEAD_DIM)
SCALE = 1 / math.sqrt(HEAD_DIM)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    return tmp_path / "picture.png"


def size_of(path: Path) -> tuple[int, int]:
    """Pixels of a PNG, whose bytes must be few enough for a README."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert 2_000 < len(data) < 200_000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is drawn, in its order."""
    drawn: list[Any] = []

    @contextmanager
    def kept(path: Any, width: float, height: float) -> Iterator[Any]:
        with canvas(path, width, height) as figure:
            yield figure
            drawn.append(figure)

    for name in (
        "attention_maps",
        "breakdown",
        "density",
        "head_patterns",
        "observations",
        "retrieval",
        "scores",
        "times",
    ):
        monkeypatch.setattr(f"minference_ext.plots.{name}.canvas", kept)
    return drawn


def pixels(path: Path) -> Any:
    """uint8 [height, width, 3]."""
    import numpy
    from PIL import Image

    return numpy.asarray(Image.open(path).convert("RGB"))


def share_of(path: Path, colour: str) -> float:
    """Of the pixels, those with a colour as "#RRGGBB", but for the rounding of the palette."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return float((abs(pixels(path).astype(int) - wanted).max(-1) <= 4).mean())


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


# ---- Attended pairs ------------------------------------------------------------------------------

PATTERNS: list[tuple[HeadPattern, reference.Pattern]] = [
    (HeadPattern.dense(), reference.Dense()),
    (HeadPattern.a_shape(70, 130), reference.AShape(70, 130)),
    (HeadPattern.a_shape(0, 1), reference.AShape(0, 1)),
    (HeadPattern.tri_shape(3, 65, 40), reference.TriShape(3, 65, 40)),
    (HeadPattern.vertical_slash(40, 110), reference.VerticalSlash(40, 110)),
    (HeadPattern.vertical_slash(200, 0), reference.VerticalSlash(200, 0)),
    (HeadPattern.block_sparse(3), reference.BlockSparse(3)),
]


def lined(q_len: int, kv_len: int) -> tuple[Tensor, Tensor]:
    """q and k of one head, of which no estimation takes everything."""
    q, k, _ = prompt_like(SHAPE, kv_len, torch.float32, seed=kv_len)
    return q[0, 0, kv_len - q_len :], k[0, 0]


@pytest.mark.parametrize(("q_len", "kv_len"), [(1000, 1000), (1500, 1500), (130, 1101)])
@pytest.mark.parametrize(("pattern", "oracle"), PATTERNS, ids=lambda value: repr(value)[:40])
def test_attended_mask_is_the_oracle_s(
    pattern: HeadPattern, oracle: reference.Pattern, q_len: int, kv_len: int
) -> None:
    q, k = lined(q_len, kv_len)
    mask = attended_mask(q, k, pattern)
    stats = plan_stats(q[None, None], k[None, None], [pattern])
    assert int(mask.sum()) == int(stats.attended_pairs)
    if bool(stats.is_dense):
        assert torch.equal(mask, reference.dense_mask(q_len, kv_len))
        return
    expected, gap = reference.head_mask(oracle, q, k, SCALE)
    assert gap > 1e-5  # no rounding decides which lines are taken
    assert torch.equal(mask, expected)
    assert mask.sum() < reference.dense_mask(q_len, kv_len).sum()


def test_lines_are_attended_sparsely_at_some_length() -> None:
    """So that the comparison above says something about vertical_slash."""
    q, k = lined(1500, 1500)
    assert not plan_stats(
        q[None, None], k[None, None], [HeadPattern.vertical_slash(40, 110)]
    ).is_dense


def test_attended_mask_refuses_lists() -> None:
    q, k = lined(64, 64)
    with pytest.raises(RuntimeError, match="vertical_idx"):
        attended_mask(q, k, HeadPattern.vertical_slash_index())


def test_probabilities_are_those_of_the_oracle() -> None:
    q, k = lined(300, 300)
    # With the unit matrix for v the output is the matrix of probabilities.
    out, _ = reference.attention(q, k, torch.eye(300), reference.dense_mask(300, 300), SCALE)
    torch.testing.assert_close(probabilities(q, k).double(), out, atol=1e-5, rtol=1e-4)


def test_attention_map_by_hand() -> None:
    """Four queries in two blocks; the pattern attends the diagonal and key 0."""
    probability = torch.tensor(
        [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.7, 0.1, 0], [0.3, 0.1, 0.2, 0.4]]
    )
    mask = torch.eye(4, dtype=torch.bool)
    mask[:, 0] = True
    head = attention_map(1, 5, "sink", "by hand", probability, mask, blocks=2, num_last=1)
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
    probability = torch.eye(4)
    strips = [Strip(0, probability, torch.ones(4, 4, dtype=torch.bool))]
    found = map_of_strips(0, 0, "", "-", 4, strips, cells=4, num_last=1, is_known=False)
    assert found.attended_share is None
    assert not found.attended.any()
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
    q, k = lined(length, length)
    attention = probabilities(q, k)
    mask = attended_mask(q, k, HeadPattern.vertical_slash(200, 200))
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


# ---- Drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [(300, "300"), (1024, "1K"), (2150, "2.1K"), (32768, "32K"), (5140, "5K"), (1 << 20, "1M")],
)
def test_tokens(count: float, text: str) -> None:
    assert tokens(count) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("short", "short"), ("a\nb\tc\x00d", "a b c d"), ("0123456789", "01234..."), ("  ", "")],
)
def test_shortened(text: str, expected: str) -> None:
    assert shortened(text, 8) == expected


def test_every() -> None:
    assert [every(count, 8) for count in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_a_picture_may_be_a_stream() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    drawn = BytesIO()
    draw_times(drawn, [Curve("SDPA", [64], [1.0], [1.0], is_dense=True)], "title")
    assert drawn.getvalue().startswith(b"\x89PNG\r\n\x1a\n")


def test_dollar_signs_are_text(picture: Path, figures: list[Any]) -> None:
    """They begin a formula in matplotlib, and half of one would raise."""
    name = r"a $\frac{ model"
    draw_times(picture, [Curve(name, [64, 128], [1.0, 20.0], [1.0, 1.0])], name)
    assert name in texts(figures[0])


def test_draw_retrieval(picture: Path) -> None:
    found = [[True] * 10, [True, *[False] * 8, True]]
    depths = [index / 9 for index in range(10)]
    results = [
        Retrieval(method, "its pattern", [1024, 2048], depths, found)
        for method in ("dense", "other")
    ]
    draw_retrieval(picture, results, "title")
    assert size_of(picture)[0] == 1350
    # Of two panels each the 20 cells are 12 found and 8 missed.
    blue, orange = share_of(picture, BLUE), share_of(picture, ORANGE)
    assert blue / orange == pytest.approx(12 / 8, rel=0.05)


def test_draw_retrieval_of_means(picture: Path, figures: list[Any]) -> None:
    found = [[0.0, 0.5], [1.0, math.nan]]
    result = Retrieval("method", "", [1024, 2048], [0.0, 1.0], found)
    draw_retrieval(picture, [result], "title")
    (image,) = figures[0].axes[0].images
    depth_by_length = image.get_array()
    assert depth_by_length.mask.tolist() == [[False, False], [False, True]]
    assert depth_by_length.filled(9).tolist() == [[0.0, 1.0], [0.5, 9.0]]
    assert {"method: 50.0%", "not asked", "score, mean of the samples"} <= set(texts(figures[0]))
    # A quarter of the panel each, and the ends of the scale.
    assert share_of(picture, ORANGE) == pytest.approx(share_of(picture, BLUE), rel=0.1)
    assert share_of(picture, "#BBBBBB") > 0.1
    assert share_of(picture, "#F3EFE6") > 0.1


def test_draw_retrieval_of_many_methods(picture: Path, figures: list[Any]) -> None:
    lengths = [1024 * count for count in range(1, 31)]
    depths = [index / 40 for index in range(41)]
    results = [
        Retrieval(f"method{number}({'1,' * 40})", "", lengths, depths, [[1.0] * 41] * 30)
        for number in range(6)
    ]
    draw_retrieval(picture, results, "title")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(panels) == 6
    for axes in panels:
        assert len(axes.get_xticks()) <= 12
        assert len(axes.get_yticks()) <= 14
        assert max(map(len, axes.get_title().split("\n"))) <= 42
    assert "1230/1230" in panels[0].get_title()


def test_draw_attention_maps(picture: Path) -> None:
    blocks = torch.rand(32, 32).tril()
    maps = [
        AttentionMap(0, head, "role", "pattern(1,2)", 32, blocks, blocks, blocks, 0.1, 0.9, 1.0)
        for head in range(6)
    ]
    draw_attention_maps(picture, maps, 1024, "title")
    width, height = size_of(picture)
    assert (width, height > 500) == (1350, True)


def test_draw_one_attention_map(picture: Path, figures: list[Any]) -> None:
    """The last cell, of two tokens, is cut where the prompt ends; three colours."""
    kept, missed = torch.zeros(15, 15), torch.zeros(15, 15)
    kept[:5, 0], missed[10:, 5] = 1, 1
    attended = torch.zeros(15, 15)
    attended[:, :5] = 1
    long = f"method({'1000,' * 20})"
    head = AttentionMap(7, 3, "", long, 7, attended.tril(), kept, missed, 0.125, 0.5, 0.25)
    draw_attention_maps(picture, [head], 100, "title", last="last 64 queries")
    axes = figures[0].axes[0]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 100), (100, 0))
    assert axes.images[0].get_extent() == [0, 105, 105, 0]
    title = axes.get_title()
    assert title.startswith("layer 7 head 3\nmethod(1000,")
    assert title.endswith("12.5% of pairs\nkeeps 50.0%, last 64 queries 25.0%")
    assert max(map(len, title.split("\n"))) <= 90
    # Of some 20 x 20 cells of the picture, the axes fill most.
    assert share_of(picture, "#00456B") == pytest.approx(share_of(picture, "#D55E00"), rel=0.25)
    assert share_of(picture, "#C9DDEE") > 0.1


def test_draw_attention_alone(picture: Path, figures: list[Any]) -> None:
    cells = torch.eye(8)
    head = AttentionMap(0, 0, "sink", "alone", 8, cells * 0, cells, cells * 0, None, 1.0, 1.0)
    draw_attention_maps(picture, [head], 64, "title")
    assert figures[0].axes[0].get_title() == "layer 0 head 0: sink\nalone"
    assert "attention missed" not in texts(figures[0])


def test_draw_times(picture: Path) -> None:
    lengths = [1024, 2048, 4096]
    curves = [
        Curve("SDPA", lengths, [1.0, 4.0, 16.0], [1.0, 1.0, 1.0], is_dense=True),
        Curve("sparse", lengths, [2.0, 3.0, 4.0], [0.5, 1.3, 4.0], crossover=1700.0),
        Curve("at once", lengths, [0.5, 1.0, 2.0], [2.0, 4.0, 8.0], crossover=1024.0),
        Curve("never", lengths, [2.0, 8.0, 32.0], [0.5, 0.5, 0.5]),
    ]
    draw_times(picture, curves, "title")
    assert size_of(picture)[0] == 1350
    draw_times(picture, [Curve("SDPA", [64], [1.0], [1.0], is_dense=True)], "one length")
    size_of(picture)


@pytest.mark.parametrize(("num_layers", "num_heads", "num_patterns"), [(2, 8, 3), (80, 64, 40)])
def test_draw_head_patterns(
    picture: Path, num_layers: int, num_heads: int, num_patterns: int
) -> None:
    patterns = [HeadPattern.vertical_slash(size, 100) for size in range(num_patterns)]
    layers = [
        [patterns[(layer * head) % num_patterns] for head in range(num_heads)]
        for layer in range(num_layers)
    ]
    counts = [
        (pattern, sum(row.count(pattern) for row in layers))
        for pattern in patterns
        if any(pattern in row for row in layers)
    ]
    draw_head_patterns(picture, layers, counts, "title")
    assert min(size_of(picture)) > 300


def test_draw_times_in_seconds(picture: Path, figures: list[Any]) -> None:
    """Milliseconds have too many digits there, and curves need not have the same lengths."""
    curves = [
        Curve("SDPA", [1024, 4096], [8.0, 120.0], [1.0, 1.0], is_dense=True),
        Curve("sparse", [1024], [10.0], [0.8]),
    ]
    draw_times(picture, curves, "title")
    left, right = figures[0].axes
    assert left.get_title() == "time, s"
    assert [list(line.get_ydata()) for line in left.lines] == [[8.0, 120.0], [10.0]]
    assert [list(line.get_ydata()) for line in right.lines] == [[1.0, 1.0], [0.8]]
    assert len(right.get_yticks()) >= 3


def test_draw_breakdown(picture: Path, figures: list[Any]) -> None:
    spent = [
        Spent(1024, "dense", 0.0, 0.0, 0.25, 0.25),
        Spent(1024, "sparse", 0.0625, 0.125, 0.125, 0.25),
        Spent(4096, "dense", 0.0, 0.0, 4.0, 1.0),
    ]
    draw_breakdown(picture, spent, "title")
    short, long = figures[0].axes
    assert (short.get_title(), long.get_title()) == ("1K tokens, ms", "4K tokens, s")
    widths = [[bar.get_width() for bar in part] for part in short.containers]
    assert widths == [[0.0, 62.5], [0.0, 125.0], [250.0, 125.0], [250.0, 250.0]]
    ends = [bar.get_x() + bar.get_width() for bar in short.containers[-1]]
    assert ends == [500.0, 562.5]
    assert [text.get_text().strip() for text in short.texts] == ["500", "562"]
    assert [bar.get_width() for part in long.containers for bar in part] == [0.0, 0.0, 4.0, 1.0]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["estimate", "plan", "attention", "rest"]
    size_of(picture)


def test_draw_density(picture: Path, figures: list[Any]) -> None:
    heads = [(0, 0.25, 1.0), (0, 0.75, 0.5), (3, 0.5, 0.875)]
    draw_density(picture, heads, "title")
    computed, recall = figures[0].axes
    for axes, means, ranges in (
        (computed, [0.5, 0.5], [(0.25, 0.75), (0.5, 0.5)]),
        (recall, [0.75, 0.875], [(0.5, 1.0), (0.875, 0.875)]),
    ):
        (line,) = axes.lines
        assert list(line.get_xdata()) == [0, 3]
        assert list(line.get_ydata()) == means
        (lines,) = axes.collections
        assert [(low[1], high[1]) for low, high in lines.get_segments()] == ranges
        assert axes.get_ylim()[0] == 0
        assert axes.get_ylim()[1] >= 1
    draw_density(picture, [(0, 0.5, 1.0)], "one layer")
    size_of(picture)


def test_draw_scores(picture: Path, figures: list[Any]) -> None:
    rows = [
        ScoreRow("task", [0.5, 1.0, math.nan]),
        ScoreRow("text (perplexity)", [8.0, 4.0, math.inf], is_high_better=False),
        ScoreRow("nothing right", [0.0, 0.0, 0.0]),
        ScoreRow("unknown", [math.nan] * 3),
    ]
    assert rows[0].relative()[:2] == [0.5, 1.0]
    assert rows[1].relative() == [0.5, 1.0, 0.0]
    assert rows[2].relative() == [1.0, 1.0, 1.0]
    assert all(map(math.isnan, [rows[0].relative()[2], *rows[3].relative()]))
    draw_scores(picture, ["dense", "a_shape(1,2)", "third"], rows, "title")
    cells = [text.get_text() for text in figures[0].axes[0].texts]
    assert cells == ["0.5", "1", "-", "8", "4", "inf", "0", "0", "0", "-", "-", "-"]
    assert {"text (perplexity)", "a_shape(1,2)"} <= set(texts(figures[0]))
    draw_scores(picture, ["one"], [ScoreRow("task", [0.25])], "one cell")
    size_of(picture)


def test_draw_observations(picture: Path, figures: list[Any]) -> None:
    coverage = Coverage(
        8192,
        [1, 256, 4096, 8192],
        own=[[0.5, 0.75, 0.875, 1.0], [0.0, 0.25, 0.875, 1.0]],
        reused=[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.75, 1.0]],
        distances=[[1, 1, 2], [0, 0, 0], [3, 1, 0]],
    )
    draw_observations(picture, coverage, "title")
    own, reused, distances = figures[0].axes
    assert list(own.lines[2].get_ydata()) == [0.25, 0.5, 0.875, 1.0]
    assert list(reused.lines[2].get_ydata()) == [0.125, 0.25, 0.75, 1.0]
    assert list(reused.lines[-1].get_ydata()) == [0.25, 0.5, 0.875, 1.0]
    assert {"256 ", "4096 "} <= {text.get_text() for text in own.texts}
    heights = [bar.get_height() for bars in distances.containers for bar in bars]
    assert heights == pytest.approx([(0.25 + 0.75) / 2, 0.25, 0.25])
    size_of(picture)


def test_marks_of_the_paper() -> None:
    assert [marks(length) for length in (64, 4096, 8192, 131072)] == [
        [2],
        [128],
        [256, 4096],
        [4096],
    ]


def test_distances_of_heads_without_any() -> None:
    assert distance_shares([[0, 0], [0, 0]]) == [0.0, 0.0]


def test_nothing_global_is_touched(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import rcParams

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    before = (rcParams["font.size"], rcParams["axes.spines.top"])
    draw_times(picture, [Curve("SDPA", [64], [1.0], [1.0], is_dense=True)], "title")
    assert (rcParams["font.size"], rcParams["axes.spines.top"]) == before


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minference_ext.plots.canvas.is_available", lambda: False)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_times(tmp_path / "picture.png", [Curve("SDPA", [64], [1.0], [1.0])], "title")
