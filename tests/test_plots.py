"""Pictures: the data behind them against the oracle and by hand, and that each becomes a PNG."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path

import pytest
import torch
from minference_ext import HeadPattern, plan_stats
from minference_ext.attended import attended_mask
from minference_ext.benchmark.crossover import PAYS, crossover
from minference_ext.benchmark.inputs import Shape, prompt_like
from minference_ext.demo.head_maps import probabilities
from minference_ext.plots import draw_attention_maps, draw_head_patterns, draw_retrieval, draw_times
from minference_ext.plots.attention_maps import AttentionMap, attention_map
from minference_ext.plots.canvas import tokens
from minference_ext.plots.retrieval import Retrieval
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


def test_draw_retrieval(picture: Path) -> None:
    found = [[True] * 10, [True, *[False] * 8, True]]
    depths = [index / 9 for index in range(10)]
    results = [
        Retrieval(method, "its pattern", [1024, 2048], depths, found)
        for method in ("dense", "other")
    ]
    draw_retrieval(picture, results, "title")
    assert size_of(picture)[0] == 1350


def test_draw_attention_maps(picture: Path) -> None:
    blocks = torch.rand(32, 32).tril()
    maps = [
        AttentionMap(0, head, "role", "pattern(1,2)", blocks, blocks, blocks, 0.1, 0.9, 1.0)
        for head in range(6)
    ]
    draw_attention_maps(picture, maps, 1024, "title")
    width, height = size_of(picture)
    assert (width, height > 500) == (1350, True)


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


def test_nothing_global_is_touched(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import rcParams

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    before = (rcParams["font.size"], rcParams["axes.spines.top"])
    draw_times(picture, [Curve("SDPA", [64], [1.0], [1.0], is_dense=True)], "title")
    assert (rcParams["font.size"], rcParams["axes.spines.top"]) == before


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minference_ext.plots.canvas.is_available", lambda: False)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_retrieval(tmp_path / "picture.png", [], "title")
