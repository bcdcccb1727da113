"""InfLLM against its definition, query by query in float64: which keys are far, which blocks are
chosen, how far keys are turned, and one softmax over all of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from minference_ext.methods import Layer, Rotation, attend_heads, parse, stats_of_heads
from minference_ext.methods.infllm import InfLLM
from torch import Tensor

from tests import reference
from tests.check import compare, rounding_term
from tests.layer_check import kv_head, random_layer


def tables(
    length: int,
    width: int = 64,
    first: int = 0,
    factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Rotation:
    """RoPE of positions first .. first + length - 1; `factor` is YaRN's on cos and sin."""
    frequency = 1000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(first, first + length, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return Rotation((angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype))


def phases(rotation: Rotation) -> Tensor:
    """complex128 [length, pairs]: what each pair of elements was multiplied by."""
    pairs = rotation.cos.shape[1] // 2
    return torch.complex(rotation.cos[:, :pairs].double(), rotation.sin[:, :pairs].double())


def times(rows: Tensor, phase: Tensor) -> Tensor:
    """Rows [..., length, head_dim] in float64, each pair (n, n + pairs) times its phase."""
    pairs = phase.shape[-1]
    rows = rows.double()
    first, second, rest = rows.split([pairs, pairs, rows.shape[-1] - 2 * pairs], dim=-1)
    turned = torch.complex(first, second) * phase
    return torch.cat((turned.real, turned.imag, rest), dim=-1)


def rotated_layer(length: int, rotation: Rotation | None = None, **shape: Any) -> Layer:
    """A random layer as a model with that rotation computes it."""
    rotation = tables(length) if rotation is None else rotation
    layer = random_layer(length, rotation=rotation, **shape)
    q, k = (times(rows, phases(rotation)) for rows in (layer.q, layer.k))
    return dataclasses.replace(layer, q=q.to(layer.q.dtype), k=k.to(layer.k.dtype))


# ---- The definition ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Turned:
    """q as if at position n_local, k as if at the first: [H, length, head_dim], [H_kv, ...]."""

    q: Tensor
    k: Tensor


def turned(method: InfLLM, layer: Layer) -> Turned:
    assert layer.rotation is not None
    phase = phases(layer.rotation)
    to_last = phase[min(method.n_local, len(phase) - 1)]
    return Turned(times(layer.q[0], to_last / phase), times(layer.k[0], phase[0] / phase))


def exec_begin(method: InfLLM, query: int) -> int:
    return query // method.exec_block_size * method.exec_block_size


def archived(method: InfLLM, query: int) -> list[int]:
    """Memory blocks that the window of the exec block's first query has left behind."""
    end = max(0, exec_begin(method, query) - method.n_local + 1)
    blocks = range(end // method.block_size + 1)
    return [m for m in blocks if method.n_init + (m + 1) * method.block_size <= end]


def gap_below(scores: list[float], count: int) -> float:
    """Relative distance of the last one taken and the first one left."""
    ranked = sorted(scores, reverse=True)
    if not 0 < count < len(ranked):
        return math.inf
    return (ranked[count - 1] - ranked[count]) / max(map(abs, ranked))


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:count]


def choices(method: InfLLM, layer: Layer) -> tuple[dict[int, list[int]], float]:
    """Chosen memory blocks by the first query of each exec block, and the closest decision."""
    far, length = turned(method, layer), layer.q.shape[2]
    heads, closest = range(layer.num_heads), math.inf
    in_window = reference.a_shape_mask(length, length, 0, method.n_local)
    sums = []
    for head in heads:
        logits = layer.q[0, head].double() @ layer.k[0, kv_head(layer, head)].double().T
        logits = (logits * layer.scale).masked_fill(~in_window, -math.inf)
        sums.append(logits.softmax(-1).sum(0))

    def representative(head: int, block: int) -> Tensor:
        nonlocal closest
        begin = method.n_init + block * method.block_size
        of_keys = sums[head][begin : begin + method.block_size].tolist()
        closest = min(closest, gap_below(of_keys, method.repr_topk))
        rows = [begin + n for n in best(of_keys, method.repr_topk)]
        return far.k[kv_head(layer, head)][rows].mean(0)

    found = {}
    known: dict[int, Tensor] = {}  # [H, head_dim] by block
    for begin in range(0, length, method.exec_block_size):
        blocks = archived(method, begin)
        means = far.q[:, begin : begin + method.exec_block_size].mean(1)
        scores = []
        for block in blocks:
            if block not in known:
                known[block] = torch.stack([representative(head, block) for head in heads])
            scores.append(float((means * known[block]).sum()))
        closest = min(closest, gap_below(scores, method.topk))
        found[begin] = [blocks[n] for n in best(scores, method.topk)]
    return found, closest


def far_mask(method: InfLLM, length: int, chosen: dict[int, list[int]]) -> Tensor:
    """bool [length, length]: keys that a query attends at the one distance."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        begin = exec_begin(method, query)
        behind = method.n_init + len(archived(method, query)) * method.block_size
        key = torch.arange(max(0, query - method.n_local + 1))
        block = (key - method.n_init).div(method.block_size, rounding_mode="floor")
        is_chosen = torch.isin(block, torch.tensor(chosen[begin])) & (key < behind)
        mask[query, : len(key)] = (key < method.n_init) | (key >= behind) | is_chosen
    return mask


def softmax_over_both(
    layer: Layer, head: int, far: Turned, mask: Tensor, n_local: int
) -> tuple[Tensor, Tensor]:
    """out and lse of one head, in the dtype of far.q: scores of that dtype, softmax in float32 or
    float64."""
    kv, dtype = kv_head(layer, head), far.q.dtype
    length = len(mask)
    near = (layer.q[0, head].to(dtype) @ layer.k[0, kv].to(dtype).T).double()
    distant = (far.q[head] @ far.k[kv].T).double()
    logits = torch.where(mask, distant, near) * layer.scale
    attended = mask | reference.a_shape_mask(length, length, 0, n_local)
    logits.masked_fill_(~attended, -math.inf)
    weights = torch.softmax(logits, -1).to(dtype)
    return weights @ layer.v[0, kv].to(dtype), torch.logsumexp(logits, -1)


def check(method: InfLLM, layer: Layer, min_gap: float = 1e-4) -> bool:
    """Holds attend and stats to the definition. False: a decision is too close to hold it to."""
    length = layer.q.shape[2]
    chosen, gap = choices(method, layer)
    if gap < min_gap:
        return False
    mask = far_mask(method, length, chosen)
    exact = turned(method, layer)
    rounded = Turned(exact.q.to(layer.q.dtype), exact.k.to(layer.q.dtype))
    heads = range(layer.num_heads)
    expected = [softmax_over_both(layer, head, exact, mask, method.n_local) for head in heads]
    plain = [softmax_over_both(layer, head, rounded, mask, method.n_local) for head in heads]
    found = method.attend(layer)
    assert (found[0].dtype, found[1].dtype) == (layer.q.dtype, torch.float32)
    for name, index in (("out", 0), ("lse", 1)):
        want = torch.stack([both[index] for both in expected])[None]
        baseline = torch.stack([both[index] for both in plain])[None]
        term = rounding_term(found[index].dtype, want) + (1e-6 if name == "lse" else 0.0)
        compare(f"{method}, {length}: {name}", found[index], want, baseline, term)
    stats = method.stats(layer)
    near_pairs = int(reference.a_shape_mask(length, length, 0, method.n_local).sum())
    attended = near_pairs + int(mask.sum())
    assert stats.attended_pairs.tolist() == [[attended] * layer.num_heads]
    assert stats.causal_pairs.tolist() == [[length * (length + 1) // 2] * layer.num_heads]
    assert (stats.computed_pairs >= stats.attended_pairs).all()
    return True


def check_one(method: InfLLM, length: int, min_gap: float = 1e-4, **shape: Any) -> None:
    assert any(
        check(method, rotated_layer(length, seed=seed, **shape), min_gap) for seed in range(40)
    ), "no seed gives choices without near ties"


# ---- Values --------------------------------------------------------------------------------------

SMALL = InfLLM(n_init=64, n_local=128, topk=2, block_size=64, exec_block_size=64, repr_topk=4)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 129, 192, 193, 257, 700])
def test_equals_the_definition(length: int) -> None:
    check_one(SMALL, length)


@pytest.mark.parametrize(
    "change",
    [
        {"n_init": 0},
        {"n_init": 192},
        {"topk": 0},
        {"topk": 100},  # more than are ever archived
        {"repr_topk": 1},
        {"repr_topk": 64},
        {"block_size": 128},
        {"n_local": 64},
        {"n_local": 192, "exec_block_size": 128},  # the window ends within an exec block
        {"n_local": 64, "exec_block_size": 256, "n_init": 0},  # memory before the second one
        {"n_local": 64, "exec_block_size": 1024, "n_init": 0},  # one exec block is all there is
        {"n_local": 640},  # hardly anything is far
    ],
    ids=lambda change: ",".join(f"{name}={value}" for name, value in change.items()),
)
def test_sizes(change: dict[str, int]) -> None:
    check_one(dataclasses.replace(SMALL, **change), 650)


@pytest.mark.parametrize(
    "shape",
    [
        {"kv_heads": 1},
        {"kv_heads": 4},
        {"head_dim": 128, "rotation": tables(450, 128)},
        {"head_dim": 128, "rotation": tables(450, 32)},  # part of the head
        {"rotation": tables(450, factor=1.3)},  # YaRN: scores of both parts have its square
        {"rotation": tables(450, first=1000)},  # behind left padding
        {"softmax_scale": 0.3},
    ],
    ids=["one-kv-head", "no-groups", "head_dim-128", "partial", "yarn", "shifted", "scale"],
)
def test_shapes(shape: dict[str, Any]) -> None:
    check_one(SMALL, 450, **shape)


@pytest.mark.parametrize("length", [65, 450])
def test_bfloat16(length: int) -> None:
    """Products rounded to bfloat16 choose the same keys and blocks where the gap is this wide: a
    probability is off by 2^-8 or so, a sum over 128 queries by a tenth of that."""
    rotation = tables(length, dtype=torch.bfloat16)
    options: dict[str, Any] = {"dtype": torch.bfloat16, "heads": 2, "rotation": rotation}
    check_one(dataclasses.replace(SMALL, topk=1), length, min_gap=0.005, **options)


# ---- What follows from the definition ------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2 * (128 + 64) * 5])  # one and five queries at a time
def test_steps_do_not_change_the_choice(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rotated_layer(450)
    expected = SMALL.attend(layer)
    monkeypatch.setattr("minference_ext.methods.infllm._SCORES_PER_STEP", limit)
    for found, want in zip(SMALL.attend(layer), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


def test_float16_keeps_large_products_in_range() -> None:
    """q . k reaches 200,000 here; queries and scale by powers of two give the same attention."""
    layer = rotated_layer(450, dtype=torch.float16)
    expected = SMALL.attend(layer)
    large = dataclasses.replace(layer, q=layer.q * 4096, softmax_scale=layer.scale / 4096)
    assert (large.q[0, 0].float() @ large.k[0, 0].float().T).abs().max() > 2 * 65504
    for found, want in zip(SMALL.attend(large), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


def test_the_choice_is_causal() -> None:
    """What comes after an exec block changes nothing in it."""
    layer, other = rotated_layer(700), rotated_layer(700, seed=1)
    out, _ = SMALL.attend(layer)
    for position in (448, 640):
        q, k, v = (
            torch.cat((ours[:, :, :position], theirs[:, :, position:]), dim=2)
            for ours, theirs in ((layer.q, other.q), (layer.k, other.k), (layer.v, other.v))
        )
        mixed = Layer(q, k, v, rotation=layer.rotation)
        found, _ = SMALL.attend(mixed)
        torch.testing.assert_close(found[:, :, :position], out[:, :, :position])
        assert not torch.allclose(found[:, :, position:], out[:, :, position:])


def test_a_prompt_within_the_window_is_dense() -> None:
    layer = rotated_layer(128)
    expected = parse("dense").attend(layer)
    for found, want in zip(SMALL.attend(layer), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    stats = SMALL.stats(layer)
    assert torch.equal(stats.attended_pairs, stats.causal_pairs)


def test_far_keys_have_no_order() -> None:
    """Two keys that stand far off are turned alike: exchanging their content changes no later row
    for which both are far."""
    method = InfLLM(n_init=64, n_local=64, topk=100, block_size=64, exec_block_size=64)
    layer = rotated_layer(400)
    assert layer.rotation is not None
    plain = times(layer.k, 1 / phases(layer.rotation))
    swapped_rows = torch.arange(400)
    swapped_rows[[20, 90]] = swapped_rows[[90, 20]]
    k = times(plain[:, :, swapped_rows], phases(layer.rotation)).float()
    swapped = dataclasses.replace(layer, k=k, v=layer.v[:, :, swapped_rows])
    out, found = method.attend(layer)[0], method.attend(swapped)[0]
    torch.testing.assert_close(found[:, :, 154:], out[:, :, 154:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, :, 100:153], out[:, :, 100:153], atol=1e-2)


def test_heads_choose_together() -> None:
    layer = rotated_layer(700, heads=8)
    dense = parse("dense")
    heads = [SMALL, dense, SMALL, SMALL, dense, dense, SMALL, SMALL]
    out, lse = attend_heads(heads, layer)
    stats = stats_of_heads(heads, layer)
    mine = [head for head, method in enumerate(heads) if method is SMALL]
    expected, expected_lse = SMALL.attend(layer.heads(mine))
    torch.testing.assert_close(out[:, mine], expected)
    torch.testing.assert_close(lse[:, mine], expected_lse)
    of_mine = SMALL.stats(layer.heads(mine)).attended_pairs
    assert torch.equal(stats.attended_pairs[:, mine], of_mine)
    everyone, _ = SMALL.attend(layer)
    assert not torch.allclose(out[:, mine], everyone[:, mine], atol=1e-3)


# ---- Errors --------------------------------------------------------------------------------------


def test_there_is_no_single_index() -> None:
    with pytest.raises(NotImplementedError, match=r"attends in two calls; use attend and stats"):
        SMALL.index(rotated_layer(10))


@pytest.mark.parametrize(
    "rotation",
    [tables(99), Rotation(torch.ones(100, 66), torch.ones(100, 66)), Rotation(*torch.ones(2, 64))],
    ids=["rows", "width", "axes"],
)
def test_rotation_fits_the_queries(rotation: Rotation) -> None:
    layer = random_layer(100, rotation=rotation)
    for use in (SMALL.attend, SMALL.stats):
        with pytest.raises(
            ValueError, match=r"rotation: found .* cos and sin, both \[100, an even"
        ):
            use(layer)
