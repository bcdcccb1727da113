"""Pictures: each becomes a PNG that shows what it is given, with nothing cut off."""

from __future__ import annotations

import itertools
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
from minference_ext import HeadPattern
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
from minference_ext.plots.attention_maps import AttentionMap
from minference_ext.plots.breakdown import Spent
from minference_ext.plots.canvas import BLUE, ORANGE, canvas
from minference_ext.plots.observations import Coverage
from minference_ext.plots.retrieval import Retrieval
from minference_ext.plots.scores import Scores
from minference_ext.plots.times import Curve


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
    cells = [axes.images[0].get_array() for axes in figures[0].axes[:2]]
    assert [found.filled(9).tolist() for found in cells] == [[[0.0, 0.5]], [[1.0, 9.0]]]
    shown = texts(figures[0])
    assert {"method", "1K tokens", "25.0%", "2K tokens", "100.0%", "not asked", "score"} <= {*shown}
    # A quarter of the panels each, and the ends of the scale.
    assert share_of(picture, ORANGE) == pytest.approx(share_of(picture, BLUE), rel=0.15)
    assert share_of(picture, "#BBBBBB") > 0.05
    assert share_of(picture, "#F3EFE6") > 0.05


def test_answers_are_counted_where_each_is_one(picture: Path, figures: list[Any]) -> None:
    """Means of several answers that are all right are no count of them."""
    lengths, depths = [1024, 2048, 3000, 4096], [0.0, 1.0]
    for is_mean, text in ((False, "all: 8/8"), (True, "all: 100.0%")):
        result = Retrieval("all", "", lengths, depths, [[1.0, 1.0]] * 4, is_mean=is_mean)
        draw_retrieval(picture, [result], "title")
        assert figures[-1].axes[0].get_title() == text
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == [
        *("1K", "2K", "3000", "4K")
    ]


def test_draw_retrieval_of_many_methods(picture: Path, figures: list[Any]) -> None:
    lengths = [1024 * count for count in range(1, 31)]
    depths = [index / 40 for index in range(41)]
    results = [
        Retrieval(f"method{number}({'1,' * 40})", "", lengths, depths, [[1.0] * 41] * 30)
        for number in range(5)
    ]
    draw_retrieval(picture, results, "title")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(panels) == 5
    for axes in panels:
        assert len(axes.get_xticks()) <= 12
        assert len(axes.get_yticks()) <= 14
        assert max(map(len, axes.get_title().split("\n"))) <= 42
    titles = [axes.get_title() for axes in panels]
    assert len(set(titles)) == 5
    assert titles[0].endswith("\n1230/1230")


def test_draw_attention_maps(picture: Path) -> None:
    blocks = torch.rand(32, 32).tril()
    maps = [
        AttentionMap(0, head, "role", "pattern(1,2)", 32, blocks, blocks, blocks, 0.1, 0.9, 1.0)
        for head in range(6)
    ]
    draw_attention_maps(picture, maps, 1024, "title")
    width, height = size_of(picture)
    assert (width, height > 500) == (1350, True)


def test_the_lowest_map_of_each_column_has_ticks(picture: Path, figures: list[Any]) -> None:
    """Also where the last row has fewer maps than there are columns."""
    cells = torch.eye(4)
    maps = [
        AttentionMap(0, head, "", "-", 16, cells, cells, cells * 0, 0.5, 1.0, 1.0)
        for head in range(6)
    ]
    draw_attention_maps(picture, maps, 64, "title")
    shown = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == ["", "", *["key"] * 4]
    assert [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown] == [
        *(False, False, True, True, True, True)
    ]


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
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["less than 0.001", "attention"]


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


def test_curves_of_many_methods_can_be_told_apart(picture: Path, figures: list[Any]) -> None:
    methods = ["PyTorch SDPA", "dense (ours)", *(f"method{number}" for number in range(20))]
    curves = [
        Curve(method, [64, 128], [1.0, 2.0], [1.0, 1.0], is_dense=number < 2)
        for number, method in enumerate(methods)
    ]
    draw_times(picture, curves, "title")
    styles = [
        (line.get_color(), line.get_linestyle(), line.get_marker())
        for line in figures[0].axes[0].lines
    ]
    assert len(set(styles)) == 22


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
    assert [text.get_text() for text in left.get_yticklabels()] == ["10", "20", "50", "100"]
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
    scores = [
        Scores("task", [0.5, 1.0, math.nan]),
        Scores("text (perplexity)", [8.0, 4.0, math.inf], is_high_better=False),
        Scores("nothing right", [0.0, 0.0, 0.0]),
        Scores("unknown", [math.nan] * 3),
    ]
    assert scores[0].relative()[:2] == [0.5, 1.0]
    assert scores[1].relative() == [0.5, 1.0, 0.0]
    assert scores[2].relative() == [1.0, 1.0, 1.0]
    assert all(map(math.isnan, [scores[0].relative()[2], *scores[3].relative()]))
    draw_scores(picture, ["dense", "a_shape(1,2)", "third"], scores, "title")
    axes = figures[0].axes[0]
    by_place = {text.get_position(): text.get_text() for text in axes.texts}
    assert [by_place[0, row] for row in range(3)] == ["0.5", "1", "-"]
    assert [by_place[1, row] for row in range(3)] == ["8", "4", "inf"]
    assert len(by_place) == 12
    assert axes.images[0].get_array()[0, :3].tolist() == [0.5, 0.5, 1.0]
    assert {"text (perplexity)", "a_shape(1,2)"} <= set(texts(figures[0]))
    draw_scores(picture, ["one"], [Scores("task (f1)", [0.25])], "one cell")
    assert "task\n(f1)" in texts(figures[1])
    size_of(picture)


LONG = [f"vertical_slash_per_chunk(1000,6096,{1 << number},{'1' * 30})" for number in range(9)]
LENGTHS = [4096, 10000, 131072, 1 << 20]


def draw_long(target: Any, title: str) -> None:
    """Every picture that has names in it, with long ones."""
    tasks = [Scores(f"niah_multikey_{column} (accuracy)", [1.0]) for column in range(14)]
    draw_scores(target, LONG, [Scores("niah", [1.0] * 9)], title)
    draw_scores(target, ["dense"], tasks, title)
    curves = [Curve(name, LENGTHS, [1e-3] * 4, [1.0] * 4) for name in LONG[:3]]
    dense = Curve(LONG[3], LENGTHS, [1.0] * 4, [1.0] * 4, is_dense=True)
    draw_times(target, [dense, *curves], title)
    spent = [Spent(length, name, 1.0, 1.0, 1.0, 1.0) for length in LENGTHS[:3] for name in LONG[:2]]
    draw_breakdown(target, spent, title)
    for lengths in (LENGTHS[:2], LENGTHS):
        found = [[1.0, 1.0]] * len(lengths)
        results = [Retrieval(name, "", lengths, [0.0, 1.0], found) for name in LONG[:4]]
        draw_retrieval(target, results, title)
    draw_head_patterns(target, [LONG], [(name, 1) for name in LONG], title)
    cells = torch.eye(2)
    maps = [
        AttentionMap(0, 0, "previous token", name, 4, cells, cells, cells * 0, 0.1, 0.9, 0.9)
        for name in LONG[:4]
    ]
    draw_attention_maps(target, maps, 8, title, last="last 64 queries")


def test_nothing_is_cut_off(picture: Path, figures: list[Any]) -> None:
    """Nor does one panel's title reach into the next, or two methods have the same."""
    draw_long(picture, f"Time of a prefill: {'somebody/Model' * 5}, 31 of 32 layers, bfloat16")
    assert len(figures) == 8
    for figure in figures:
        width, height = figure.canvas.get_width_height()
        shown = [*figure.texts, *(text for of in figure.legends for text in of.get_texts())]
        for axes in figure.axes:
            shown += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
            shown += [label for label in labels if "_" in label.get_text()]  # methods and tasks
        assert len(shown) > 8
        for text in shown:
            box = text.get_window_extent()
            assert not text.get_text() or -1 <= box.x0 <= box.x1 <= width + 1, text
            assert not text.get_text() or -1 <= box.y0 <= box.y1 <= height + 1, text
        titles = [axes.title for axes in figure.axes if axes.get_title()]
        for left, right in itertools.pairwise(title.get_window_extent() for title in titles):
            assert left.y0 > right.y1 or left.x1 < right.x0
    by_method = [axes.get_title() for axes in figures[5].axes]
    assert len(set(by_method)) == 4


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
