"""Methods that choose blocks or sizes by the prompt, against definitions in float64.

Choices are compared where rounding cannot flip them: a definition says so of each block of queries
(`is_clear`), and every test asserts that enough of them are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import minference_ext
import pytest
import torch
from minference_ext.methods import Layer, LayerIndex, Method, attend_heads, parse, stats_of_heads
from torch import Tensor

from tests import block_methods_reference as definitions
from tests import reference
from tests.block_methods_reference import Selection
from tests.check import compare, rounding_term

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Prompt:
    """One layer's q, k and v. Query head h reads the keys as head h % 4 says: 0 all alike, 1 by a
    few heavy columns, 2 along two diagonals, 3 by topics that change with the position."""

    name: str
    reason: str
    q_len: int
    kv_len: int
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 64
    dtype: torch.dtype = F32
    seed: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    @property
    def group(self) -> int:
        return self.num_heads // self.num_kv_heads

    def layer(self, device: str = "cpu") -> Layer:
        generator = torch.Generator().manual_seed(self.seed)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        quarter = self.head_dim // 4
        positions = torch.arange(self.kv_len)
        frequencies = 2.0 ** -torch.linspace(0.5, 7, quarter // 2)
        topics = 3.0 * noise(16, quarter)

        def at(offset: int) -> Tensor:
            angles = (positions - offset)[:, None] * frequencies
            return torch.cat((angles.cos(), angles.sin()), dim=1)

        k = 0.3 * noise(1, self.num_kv_heads, self.kv_len, self.head_dim)
        heavy = torch.randperm(self.kv_len, generator=generator)[:6]
        k[..., heavy, 0] += 3.0
        k[..., quarter : 2 * quarter] += 1.5 * at(0)
        k[..., 2 * quarter : 3 * quarter] += topics[positions // 96 % 16]
        q = 0.5 * noise(1, self.num_heads, self.q_len, self.head_dim)
        prefix = self.kv_len - self.q_len
        for head in range(self.num_heads):
            rows = q[0, head]
            if head % 4 == 1:
                rows[:, 0] += 22.0
            elif head % 4 == 2:
                both = at(0) + 0.9 * at(300)
                rows[:, quarter : 2 * quarter] += 6.0 * both[prefix:]
            elif head % 4 == 3:
                mixed = topics[positions * 7 // 96 % 16] + topics[positions // 96 % 16]
                rows[:, 2 * quarter : 3 * quarter] += mixed[prefix:]
        v = noise(*k.shape)
        q, k, v = (tensor.to(device, self.dtype) for tensor in (q, k, v))
        return Layer(q, k, v)

    def heads(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """q, k and v of each query head, on the CPU."""
        layer = self.layer()
        kv_heads = [head // self.group for head in range(self.num_heads)]
        return [
            (layer.q[0, head], layer.k[0, kv_head], layer.v[0, kv_head])
            for head, kv_head in enumerate(kv_heads)
        ]


WHOLE = [
    Prompt("n640", "whole blocks", 640, 640),
    Prompt("n901", "a last block of 5 tokens, a last group of 5", 901, 901, seed=1),
    Prompt("n700", "the last row block is the first half of a block", 700, 700, seed=2),
    Prompt("gqa1", "a kv head for each query head", 600, 600, num_kv_heads=4, head_dim=128, seed=3),
    Prompt("gqa2", "groups of two, twice the heads", 650, 650, num_heads=8, num_kv_heads=4, seed=4),
    Prompt("bf16", "the type of models", 900, 900, head_dim=128, dtype=BF16, seed=5),
]
CHUNKS = [
    Prompt("chunk-aligned", "begins with a block", 384, 896, seed=6),
    Prompt("chunk-half", "row blocks end inside blocks of 128", 300, 812 - 64, seed=7),
    Prompt("chunk-odd", "row blocks lie in two blocks, a group is cut", 333, 870, seed=8),
    Prompt("chunk-short", "fewer queries than a block", 70, 777, seed=9),
    Prompt("chunk-one", "a single query", 1, 500, seed=10),
]
SHORT = [Prompt(f"n{n}", "at most two blocks", n, n) for n in (1, 63, 64, 65, 127, 129, 200)]
SOME = [WHOLE[1], WHOLE[5], CHUNKS[1], CHUNKS[2]]  # for every set of parameters


def on(prompt: Prompt, device: str) -> Prompt:
    """The prompt with a dtype that the device has: a GPU has no float32."""
    return replace(prompt, dtype=F16 if device != "cpu" and prompt.dtype == F32 else prompt.dtype)


def attended(index: LayerIndex, q_len: int, kv_len: int) -> list[Tensor]:
    """Pairs of each head [q_len, kv_len] of an index of blocks or dense heads. Asserts that no list
    is empty, has an entry twice or one that causality hides."""
    masks = []
    for head, pattern in enumerate(index.head_patterns):
        if pattern.kind == "dense":
            masks.append(reference.dense_mask(q_len, kv_len))
            continue
        assert pattern.kind == "block_index"
        assert index.block_idx is not None
        lists = [[n for n in row if n >= 0] for row in index.block_idx[0, head].tolist()]
        assert all(lists)
        assert all(len(set(blocks)) == len(blocks) for blocks in lists)
        ends = [min(64 * row + 64, q_len) + kv_len - q_len for row in range(len(lists))]
        assert all(64 * max(blocks) < end for blocks, end in zip(lists, ends, strict=True))
        masks.append(reference.block_mask(q_len, kv_len, lists))
    return masks


def written(name: str, parameters: dict[str, Any]) -> Method:
    return parse(f"{name}({','.join(f'{key}={value}' for key, value in parameters.items())})")


def every_prompt_and_some(
    prompts: list[Prompt], *parameters: dict[str, Any]
) -> list[tuple[dict[str, Any], Prompt]]:
    """All prompts with the default parameters, and SOME of them with each of these."""
    defaults: list[tuple[dict[str, Any], Prompt]] = [({}, prompt) for prompt in prompts]
    return defaults + [(each, prompt) for each in parameters for prompt in SOME]


def check_attention(
    name: str,
    found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
    baseline: tuple[Tensor, Tensor],
) -> None:
    """out and lse of a head. Kernels are held to less elsewhere: here a wrong pair would show."""
    for what, got, want, plain in zip(("out", "lse"), found, expected, baseline, strict=True):
        term = 1e-6 + 4 * rounding_term(got.dtype, want)
        compare(f"{name}: {what}", got, want, plain, term)


def check_blocks(
    method: Method,
    prompt: Prompt,
    selections: list[Selection | None],
    device: str,
    clear_share: float,
) -> None:
    """Choice, output, lse and counted pairs of a method, where the definition's choice is clear."""
    layer = prompt.layer(device)
    size = (prompt.q_len, prompt.kv_len)
    masks = attended(method.index(layer), *size)
    out, lse = method.attend(layer)
    pairs = method.stats(layer).attended_pairs[0].tolist()
    num_clear = 0
    for head, (data, selection) in enumerate(zip(prompt.heads(), selections, strict=True)):
        expected, is_clear = reference.dense_mask(*size), torch.ones(size[0], dtype=torch.bool)
        if selection is not None:
            expected, is_clear = selection.pairs(*size)
        num_clear += int(is_clear.sum())
        assert torch.equal(masks[head][is_clear], expected[is_clear]), f"{prompt}, head {head}"
        assert pairs[head] == int(masks[head].sum())
        want, want_lse = reference.attention(*data, expected, prompt.scale)
        plain, plain_lse = reference.attention_low_precision(*data, expected, prompt.scale)
        check_attention(
            f"{prompt}, head {head}",
            (out[0, head].cpu()[is_clear], lse[0, head].cpu()[is_clear]),
            (want[is_clear], want_lse[is_clear]),
            (plain[is_clear], plain_lse[is_clear]),
        )
    share = num_clear / (prompt.num_heads * prompt.q_len)
    assert share >= clear_share, f"{prompt}: {share:.2f} of the choices are clear; change the seed"


# ---- FlexPrefill ---------------------------------------------------------------------------------


FLEXPREFILL: dict[str, Any] = {
    "gamma": 0.9,
    "tau": 0.1,
    "min_budget": None,
    "max_budget": None,
    "block_size": 128,
}


def flexprefill(prompt: Prompt, **parameters: Any) -> list[Selection | None]:
    given = FLEXPREFILL | parameters
    return [
        definitions.flexprefill(
            q,
            k,
            prompt.scale,
            given["gamma"],
            given["tau"],
            given["min_budget"],
            given["max_budget"],
            given["block_size"],
            tolerance=1e-5,  # all of it is computed in float32
        )
        for q, k, _ in prompt.heads()
    ]


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    every_prompt_and_some(
        [*WHOLE, *CHUNKS, *SHORT],
        {"gamma": 0.57, "tau": 0.3},
        {"gamma": 0.95, "tau": 0.0},
        {"gamma": 0.7, "min_budget": 200, "max_budget": 256},
        {"gamma": 0.47, "tau": 0.15, "block_size": 64},
    ),
    ids=str,
)
def test_flexprefill(parameters: dict[str, Any], prompt: Prompt, device: str) -> None:
    prompt = on(prompt, device)
    selections = flexprefill(prompt, **parameters)
    check_blocks(written("flexprefill", parameters), prompt, selections, device, clear_share=0.75)


def test_flexprefill_prompts_have_heads_of_both_kinds() -> None:
    selections = [head for prompt in WHOLE for head in flexprefill(prompt)]
    kinds = [head.is_query_aware for head in selections if head is not None]
    assert len(kinds) == len(selections)
    assert 2 <= sum(kinds) <= len(kinds) - 2


@pytest.mark.parametrize(
    ("length", "min_budget", "block_size", "is_dense"),
    [
        (256, None, 128, True),
        (257, None, 128, False),
        (128, None, 64, True),
        (129, 64, 64, False),
        (384, 257, 128, True),
        (385, 257, 128, False),
    ],
)
def test_flexprefill_is_dense_up_to_its_bound(
    length: int, min_budget: int | None, block_size: int, is_dense: bool
) -> None:
    method = written("flexprefill", {"min_budget": min_budget, "block_size": block_size})
    index = method.index(Prompt("", "", length, length).layer())
    assert {pattern.kind for pattern in index.head_patterns} == {
        "dense" if is_dense else "block_index"
    }


# ---- XAttention ----------------------------------------------------------------------------------

# What rounding does to a block's share of the score: that of a pair of groups is rounded.
SCORE_ERROR = {F32: 1e-5, F16: 4e-3, BF16: 2e-2}


def xattention(prompt: Prompt, **parameters: Any) -> list[Selection | None]:
    given = {"stride": 8, "threshold": 0.9, "norm": 1.0, "block_size": 128} | parameters
    return [
        definitions.xattention(
            q,
            k,
            prompt.scale,
            given["stride"],
            given["threshold"],
            given["norm"],
            given["block_size"],
            tolerance=SCORE_ERROR[prompt.dtype],
        )
        for q, k, _ in prompt.heads()
    ]


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    every_prompt_and_some(
        [*WHOLE, *CHUNKS, *SHORT],
        {"stride": 16, "threshold": 0.55},
        {"stride": 4, "threshold": 0.8, "norm": 0.5, "block_size": 64},
    ),
    ids=str,
)
def test_xattention(parameters: dict[str, Any], prompt: Prompt, device: str) -> None:
    prompt = on(prompt, device)
    selections = xattention(prompt, **parameters)
    clear_share = 0.97 if prompt.dtype == F32 else 0.5
    check_blocks(written("xattention", parameters), prompt, selections, device, clear_share)


def test_xattention_of_a_chunk_is_that_of_the_prompt() -> None:
    """A chunk that begins with a block selects what its queries select within the whole prompt."""
    method = written("xattention", {"threshold": 0.7})
    layer = Prompt("", "", 901, 901, seed=11).layer()
    chunk = Layer(layer.q[:, :, 384:], layer.k, layer.v)
    whole = attended(method.index(layer), 901, 901)
    part = attended(method.index(chunk), 901 - 384, 901)
    assert all(torch.equal(a[384:], b) for a, b in zip(whole, part, strict=True))
    assert not all(torch.equal(a, reference.dense_mask(901, 901)) for a in whole)


def test_xattention_ties_go_to_the_lowest_block() -> None:
    """With q = 0 all groups score the same: blocks 0 and own, then 1, 2, .. up to the threshold."""
    layer = Prompt("", "", 1024, 1024).layer()
    layer = replace(layer, q=torch.zeros_like(layer.q))
    index = written("xattention", {"threshold": 0.5}).index(layer)
    assert index.block_idx is not None
    for row_block in range(16):
        row = row_block // 2
        # Of the row's 16 query groups, a has 1 / (a + 1) of its probability in each group of keys.
        probabilities = [1 / (a + 1) for a in range(16 * row, 16 * row + 16)]
        per_block = [16 * sum(probabilities)] * row
        per_block.append(sum((i + 1) * value for i, value in enumerate(probabilities)))
        kept = {0, row}
        for block in range(1, row):
            if sum(per_block[n] for n in kept) < 0.5 * 16 - 1e-6:
                kept.add(block)
        expected = {2 * n + half for n in kept for half in (0, 1)} & set(range(row_block + 1))
        for head in range(4):
            found = index.block_idx[0, head, row_block].tolist()
            assert {n for n in found if n >= 0} == expected, f"row block {row_block}"


def test_xattention_keeps_all_at_threshold_one() -> None:
    layer = Prompt("", "", 500, 500).layer()
    for mask in attended(written("xattention", {"threshold": 1.0}).index(layer), 500, 500):
        assert torch.equal(mask, reference.dense_mask(500, 500))


def test_xattention_in_float16_keeps_large_sums_in_range() -> None:
    """Sums over a group of this q . k reach 1.8 million; each block's queries find the block
    before."""
    signs = torch.randint(0, 2, (6, 1, 128)) * 2.0 - 1.0
    k = (30 * signs.expand(6, 128, 128)).reshape(1, 1, 768, 128).to(F16)
    layer = Layer(k.roll(128, dims=2), k, k)
    index = written("xattention", {"stride": 16}).index(layer)
    blocks = [{row, max(row - 1, 0), 0} for row in range(6)]
    expected, _ = Selection(128, 0, blocks, [True] * 6).pairs(768, 768)
    assert torch.equal(attended(index, 768, 768)[0], expected)


# ---- The best blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "prompt"),
    every_prompt_and_some([*WHOLE, *CHUNKS, *SHORT], {"top_k": 1}, {"top_k": 3}),
    ids=str,
)
def test_top_k(parameters: dict[str, int], prompt: Prompt, device: str) -> None:
    prompt = on(prompt, device)
    layer = prompt.layer(device)
    parameters = {"top_k": 4} | parameters
    method = written("top_k", parameters)
    masks = attended(method.index(layer), prompt.q_len, prompt.kv_len)
    out, lse = method.attend(layer)
    pairs = method.stats(layer).attended_pairs[0].tolist()
    for head, data in enumerate(prompt.heads()):
        q, k, _ = data
        blocks = definitions.top_k(q, k, prompt.scale, parameters["top_k"], tolerance=1e-5)
        expected = reference.block_mask(prompt.q_len, prompt.kv_len, [list(row) for row in blocks])
        assert torch.equal(masks[head], expected), f"{prompt}, head {head}"
        assert pairs[head] == int(expected.sum())
        check_attention(
            f"{prompt}, head {head}",
            (out[0, head].cpu(), lse[0, head].cpu()),
            reference.attention(*data, expected, prompt.scale),
            reference.attention_low_precision(*data, expected, prompt.scale),
        )


def test_top_k_recalls_at_least_what_block_sparse_does() -> None:
    layer = WHOLE[1].layer()
    _, best = written("top_k", {"top_k": 4}).attend(layer)
    _, guessed = written("block_sparse", {"top_k": 4}).attend(layer)
    _, dense = minference_ext.dense_attention(layer.q, layer.k, layer.v)
    recalls = [(lse - dense).exp()[0].mean(-1) for lse in (best, guessed)]
    assert (recalls[0] >= recalls[1] - 1e-6).all()
    assert (recalls[0] > recalls[1] + 0.01).any()


# ---- Vertical-slash by recall --------------------------------------------------------------------

SIZES = (30, 50)  # of columns and diagonals in the first round


def last_recalls(prompt: Prompt, factors: list[int]) -> list[list[float]]:
    """Per head, the mean recall of the last 64 queries with lines of each factor times SIZES."""
    recalls = []
    for q, k, v in prompt.heads():
        last = q[-64:]
        rows = len(last)
        everything = reference.dense_mask(rows, prompt.kv_len)
        _, dense = reference.attention(last, k, v, everything, prompt.scale)
        of_head = []
        for factor in factors:
            sizes = reference.VerticalSlash(factor * SIZES[0], factor * SIZES[1])
            columns, offsets, _ = reference.estimate_lines(last, k, sizes, prompt.scale)
            mask = reference.vertical_slash_mask(rows, prompt.kv_len, columns, offsets)
            _, lse = reference.attention(last, k, v, mask, prompt.scale)
            of_head.append(float((lse - dense).exp().mean()))
        recalls.append(of_head)
    return recalls


@pytest.mark.parametrize("max_share", [1.0, 0.3])
@pytest.mark.parametrize("recall", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("prompt", [*WHOLE, *CHUNKS[:-1]], ids=str)
def test_by_recall(prompt: Prompt, recall: float, max_share: float, device: str) -> None:
    """Each head has the first sizes that recall enough, and is dense where none do."""
    prompt = on(prompt, device)
    method = written(
        "vertical_slash_by_recall",
        {
            "recall": recall,
            "vertical_size": SIZES[0],
            "slash_size": SIZES[1],
            "max_share": max_share,
        },
    )
    factors = [f for f in (1, 2, 4, 8, 16) if f * sum(SIZES) <= max_share * prompt.kv_len]
    expected = []
    for of_head in last_recalls(prompt, factors):
        assert all(abs(found - recall) > 1e-4 for found in of_head), "too close: change the seed"
        enough = [factor for factor, found in zip(factors, of_head, strict=True) if found >= recall]
        expected.append((enough[0] * SIZES[0], enough[0] * SIZES[1]) if enough else ())
    found = method.index(prompt.layer(device)).head_patterns
    assert [pattern.sizes for pattern in found] == expected
    assert all(
        pattern.kind == ("vertical_slash" if sizes else "dense")
        for pattern, sizes in zip(found, expected, strict=True)
    )


def test_by_recall_raises_heads_apart() -> None:
    """Of one prompt some heads stay at the first sizes, some grow, some become dense."""
    method = written("vertical_slash_by_recall", {"recall": 0.97, "slash_size": 50})
    sizes = [pattern.sizes for p in WHOLE for pattern in method.index(p.layer()).head_patterns]
    assert () in sizes
    assert (30, 50) in sizes
    assert len(set(sizes)) >= 4


def test_by_recall_attends_what_it_says() -> None:
    prompt = WHOLE[1]
    method = written("vertical_slash_by_recall", {"recall": 0.8, "slash_size": 50})
    layer = prompt.layer()
    patterns = list(method.index(layer).head_patterns)
    expected = minference_ext.sparse_attention(layer.q, layer.k, layer.v, patterns)
    found = method.attend(layer)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert method.stats(layer).causal_pairs.tolist() == [[901 * 902 // 2] * 4]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 129, 200])
def test_by_recall_is_dense_where_the_first_sizes_are_too_many(length: int) -> None:
    layer = Prompt("", "", length, length).layer()
    index = written("vertical_slash_by_recall", {}).index(layer)
    assert {pattern.kind for pattern in index.head_patterns} == {"dense"}


# ---- All of them ---------------------------------------------------------------------------------

ALL = [
    "flexprefill(gamma=0.7)",
    "xattention(threshold=0.6)",
    "top_k(3)",
    "vertical_slash_by_recall(0.8,30,50)",
]


@pytest.mark.parametrize("text", ALL)
def test_heads_do_not_affect_each_other(text: str) -> None:
    method = parse(text)
    layer = WHOLE[4].layer()  # four groups of two
    whole = method.index(layer)
    for heads in ([0], [3], [2, 3], [1, 6, 7]):
        alone = method.index(layer.heads(heads))
        assert alone.head_patterns == tuple(whole.head_patterns[head] for head in heads)
        if whole.block_idx is not None:
            together = attended(whole, 650, 650)
            for mask, head in zip(attended(alone, 650, 650), heads, strict=True):
                assert torch.equal(mask, together[head])


@pytest.mark.parametrize("text", ALL)
def test_softmax_scale_counts(text: str) -> None:
    """A scale of its own is that scale on q."""
    method = parse(text)
    layer = WHOLE[1].layer()
    scaled = replace(layer, q=4 * layer.q, softmax_scale=layer.scale / 4)
    other = replace(layer, softmax_scale=layer.scale / 16)
    found = [method.attend(each)[1] for each in (layer, scaled, other)]
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=0.1)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("xattention(threshold=0.7)", {"xattention._QUERIES_PER_STEP": 256}),
        ("xattention(threshold=0.7)", {"xattention._SCORES_PER_STEP": 1}),
        ("xattention(threshold=0.7)", {"block_lists._TILES_PER_STEP": 1}),
        ("flexprefill(gamma=0.7)", {"block_lists._TILES_PER_STEP": 15 * 4}),
        ("top_k(3)", {"top_k._SCORES_PER_STEP": 1}),
        ("top_k(3)", {"top_k._SCORES_PER_STEP": 901 * 64 * 3}),
    ],
)
def test_steps_do_not_change_the_choice(
    text: str, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, layer = parse(text), WHOLE[1].layer()
    expected = attended(method.index(layer), 901, 901)
    for name, value in limits.items():
        monkeypatch.setattr(f"minference_ext.methods.{name}", value)
    found = attended(method.index(layer), 901, 901)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("text", ["flexprefill(gamma=0.7)", "xattention(threshold=0.6)"])
def test_lists_are_of_as_many_heads_as_fit(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups attend together, as many as have lists within the bound, at least one."""
    method, layer = parse(text), WHOLE[4].layer()  # four groups of two
    expected, stats = attend_heads([method], layer), stats_of_heads([method], layer)
    sizes: list[int] = []
    index = type(method).index

    def spy(self: Method, layer: Layer) -> LayerIndex:
        sizes.append(layer.num_heads)
        return index(self, layer)

    monkeypatch.setattr(type(method), "index", spy)
    bytes_of_head = 4 * 11 * 11  # of 650 tokens
    for bound, parts in ((8, [8]), (7, [6, 2]), (4, [4, 4]), (3, [2] * 4), (1, [2] * 4)):
        monkeypatch.setattr("minference_ext.methods.block_lists._LIST_BYTES", bound * bytes_of_head)
        sizes.clear()
        found = attend_heads([method], layer)
        assert sizes == parts
        assert found[0].transpose(1, 2).is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        in_parts = stats_of_heads([method], layer)
        assert torch.equal(in_parts.attended_pairs, stats.attended_pairs)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("flexprefill(gamma=0)", r"flexprefill, gamma: found 0.0; it must be in \(0, 1\]"),
        ("flexprefill(gamma=1.1)", r"flexprefill, gamma: found 1.1"),
        ("flexprefill(gamma=nan)", r"flexprefill, gamma: found nan"),
        ("flexprefill(tau=-0.1)", r"flexprefill, tau: found -0.1; it must be in \[0, 1\]"),
        ("flexprefill(min_budget=0)", r"flexprefill, min_budget: found 0; it must be None or"),
        ("flexprefill(max_budget=-5)", r"flexprefill, max_budget: found -5"),
        ("flexprefill(0.9,0.1,512,256)", r"max_budget: found 256; .*min_budget, which is 512"),
        ("flexprefill(block_size=96)", r"flexprefill, block_size: found 96; .* multiple of 64"),
        ("flexprefill(block_size=0)", r"flexprefill, block_size: found 0"),
        ("xattention(stride=7)", r"xattention, stride: found 7; .* divides block_size, .* 128"),
        ("xattention(stride=0)", r"xattention, stride: found 0"),
        ("xattention(threshold=0)", r"xattention, threshold: found 0.0; .*\(0, 1\]"),
        ("xattention(block_size=32)", r"xattention, block_size: found 32; .* multiple of 64"),
        ("xattention(norm=0)", r"xattention, norm: found 0.0; .* finite number above 0"),
        ("xattention(norm=inf)", r"xattention, norm: found inf"),
        ("top_k(0)", r"top_k, top_k: found 0; it must be a whole number >= 1"),
        ("vertical_slash_by_recall(0)", r"recall: found 0.0; it must be in \(0, 1\]"),
        ("vertical_slash_by_recall(1.5)", r"recall: found 1.5"),
        ("vertical_slash_by_recall(0.9,0)", r"vertical_size: found 0; .* number >= 1"),
        ("vertical_slash_by_recall(slash_size=0)", r"slash_size: found 0"),
        ("vertical_slash_by_recall(max_share=2)", r"max_share: found 2.0; .*\(0, 1\]"),
    ],
)
def test_parameters_out_of_range(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse(text)
