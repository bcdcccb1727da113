"""The retrieval model answers at any depth, its heads attend as claimed, its margins hold at 1M.

Nothing of the library's attention runs here: a miss in this file is the model's fault, so that a
miss elsewhere is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from minference_ext.testing import (
    RetrievalPrompt,
    RetrievalSpec,
    answer_logits,
    build_retrieval_model,
    default_patterns,
    head_roles,
    key_value_pairs,
    needles_at_depths,
    questions_in_the_middle,
    retrieved,
    single_needle,
    variable_tracking,
)
from minference_ext.testing.model import BOS_TOKEN, SEP_TOKEN, _codes
from transformers import LlamaForCausalLM

TEN_DEPTHS = [index / 9 for index in range(10)]
ONE_MILLION = 1 << 20

_models: dict[tuple[RetrievalSpec, torch.dtype, str], LlamaForCausalLM] = {}


def build(
    spec: RetrievalSpec | None = None,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> LlamaForCausalLM:
    case = (spec or RetrievalSpec(), dtype, attn_implementation)
    if case not in _models:
        _models[case] = build_retrieval_model(
            case[0], dtype=dtype, attn_implementation=attn_implementation
        )
    return _models[case]


both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


# --- Retrieval ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1024, torch.float32),
        (1024, torch.bfloat16),
        (1024, torch.float16),
        (4096, torch.float32),
        (4096, torch.bfloat16),
        (16384, torch.float32),
    ],
    ids=str,
)
def test_finds_ten_needles_in_one_prefill(length: int, dtype: torch.dtype) -> None:
    prompt = needles_at_depths(length, TEN_DEPTHS, seed=length)
    assert retrieved(build(dtype=dtype), prompt) == [True] * 10


@both_dtypes
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_finds_a_single_needle(depth: float, dtype: torch.dtype) -> None:
    assert retrieved(build(dtype=dtype), single_needle(777, depth, seed=3)) == [True]


@both_dtypes
def test_finds_pairs_in_a_prompt_full_of_pairs(dtype: torch.dtype) -> None:
    prompt = key_value_pairs(3140, 1024, asked=range(0, 1024, 33), seed=5)
    assert len(prompt.answers) == 32
    assert retrieved(build(dtype=dtype), prompt) == [True] * 32


@both_dtypes
@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_follows_chains_of_variables(hops: int, dtype: torch.dtype) -> None:
    model = build(RetrievalSpec(hops=4), dtype)
    prompt = variable_tracking(2048, hops, seed=hops, num_chains=5)
    assert retrieved(model, prompt) == [True] * 5


def test_stops_at_the_variable_that_its_layers_reach() -> None:
    prompt = variable_tracking(1024, 3, seed=1)
    predicted = answer_logits(build(RetrievalSpec(hops=2)), prompt).argmax(-1).tolist()
    second = prompt.evidence_positions[0][1]
    assert predicted == [int(prompt.input_ids[0, second])]


@pytest.mark.parametrize(
    "spec",
    [
        RetrievalSpec(head_dim=64, num_keys=300, num_values=300, num_fillers=300, hops=2),
        RetrievalSpec(head_dim=256, num_heads=4, num_kv_heads=1, hops=2),
        RetrievalSpec(num_heads=4, num_kv_heads=4, hidden_size=256, hops=2),
    ],
    ids=["head_dim_64", "head_dim_256", "no_gqa"],
)
@both_dtypes
def test_other_shapes(spec: RetrievalSpec, dtype: torch.dtype) -> None:
    model = build(spec, dtype)
    assert all(retrieved(model, needles_at_depths(2048, TEN_DEPTHS, spec=spec)))
    assert all(retrieved(model, variable_tracking(2048, 2, num_chains=4, spec=spec)))


@both_dtypes
def test_answers_at_the_last_positions_below_1m(dtype: torch.dtype) -> None:
    model = build(RetrievalSpec(hops=2), dtype)
    prompt = variable_tracking(1024, 2, seed=2, num_chains=8)
    positions = torch.arange(ONE_MILLION - 1024, ONE_MILLION)[None]
    logits = model(prompt.input_ids, position_ids=positions, use_cache=False).logits
    assert all(retrieved(logits, prompt))


def test_generates_the_answer_then_the_separator() -> None:
    prompt = single_needle(500, 0.4)
    model: Any = build()  # Transformers' type of generate() rejects its own classes
    generated = model.generate(prompt.input_ids, max_new_tokens=8, do_sample=False)
    assert generated[0, 500:].tolist() == [prompt.answers[0], SEP_TOKEN]


def test_says_separator_for_an_unknown_key() -> None:
    prompt = single_needle(500, 0.4)
    known = prompt.asked[0]
    prompt.input_ids[0, -1] = next(token for token in RetrievalSpec().key_tokens if token != known)
    assert answer_logits(build(), prompt).argmax(-1).tolist() == [SEP_TOKEN]


def test_seed_changes_the_weights_and_not_the_answers() -> None:
    other = build_retrieval_model(seed=7)
    assert not torch.equal(other.lm_head.weight, build().lm_head.weight)
    assert retrieved(other, single_needle(512, 0.5)) == [True]


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    build_retrieval_model()
    assert torch.equal(before, torch.random.get_rng_state())


# --- What each head attends to --------------------------------------------------------------------


@both_dtypes
def test_heads_attend_as_their_roles_say(dtype: torch.dtype) -> None:
    spec = RetrievalSpec(hops=2)
    prompt = variable_tracking(512, 2, seed=4)
    model = build(spec, dtype, "eager")
    attentions = model(prompt.input_ids, output_attentions=True, use_cache=False).attentions
    rows = torch.arange(1, 512)
    offsets = torch.arange(512)[:, None] - torch.arange(512)
    for layer_idx, roles in enumerate(head_roles(spec)):
        assert {"local", "sink"} < set(roles)
        for head, role in enumerate(roles):
            attention = attentions[layer_idx][0, head].float()  # [512, 512]
            if role == "previous_token":
                assert attention[rows, rows - 1].min() > 0.99
            elif role == "local":
                assert (attention * (offsets < 256)).sum(-1).min() > 0.98
                assert attention.max(-1).values[100:].max() < 0.5
            elif role == "sink":
                assert attention[:, 0].min() > 0.99
            else:
                evidence = prompt.evidence_positions[0][layer_idx - 1]
                assert attention[prompt.answer_positions[0], evidence] > 0.99


def test_a_shape_misses_what_lies_between_sink_and_window() -> None:
    length, sink, window = 2048, 256, 1024
    prompt = needles_at_depths(length, [0.02, 0.2, 0.4, 0.6, 0.95])
    assert answers_with(a_shape(length, sink, window), prompt) == [True, False, False, True, True]


def test_vertical_slash_needs_the_evidence_columns() -> None:
    prompt = needles_at_depths(2048, [0.1, 0.4, 0.6])
    keep = a_shape(2048, sink=32, window=128)
    assert answers_with(keep, prompt) == [False] * 3
    for (column,) in prompt.evidence_positions:
        keep[:, column] = True
    assert answers_with(keep.tril(), prompt) == [True] * 3


def a_shape(length: int, sink: int, window: int) -> torch.Tensor:
    """Mask [length, length] of a causal sink and window."""
    query_idx, key_idx = torch.arange(length)[:, None], torch.arange(length)
    return ((key_idx < sink) | (query_idx - key_idx < window)).tril()


def answers_with(keep: torch.Tensor, prompt: RetrievalPrompt) -> list[bool]:
    logits = build()(prompt.input_ids, attention_mask=keep[None, None], use_cache=False).logits
    return retrieved(logits, prompt)


def test_default_patterns_cover_every_head() -> None:
    spec = RetrievalSpec(hops=2)
    patterns = default_patterns(spec)
    assert [len(row) for row in patterns] == [spec.num_heads] * spec.num_layers
    assert {pattern.kind for row in patterns for pattern in row} == {"vertical_slash", "a_shape"}


# --- Margins at 1M tokens -------------------------------------------------------------------------


def attention_rows(
    model: LlamaForCausalLM,
    layer_idx: int,
    role: str,
    query_residuals: torch.Tensor,  # [num_queries, hidden_size]
    query_positions: torch.Tensor,  # [num_queries]
    key_residuals: torch.Tensor,  # [num_distinct, hidden_size]
    key_of_position: torch.Tensor,  # [num_keys], the row of key_residuals at each position
) -> torch.Tensor:
    """Attention of the layer's head with `role` over all keys, [num_queries, num_keys].

    Uses the model's own norm, projections and RoPE angles, in its dtype; scores and softmax are
    float32, as in fused kernels.
    """
    head = head_roles(RetrievalSpec(hops=model.config.num_hidden_layers - 1))[layer_idx].index(role)
    layer, attention = model.model.layers[layer_idx], model.model.layers[layer_idx].self_attn
    kv_head = head // attention.num_key_value_groups
    dim: int = attention.head_dim

    def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cos, sin = model.model.rotary_emb(x, positions[None])
        turned = torch.cat((-x[:, dim // 2 :], x[:, : dim // 2]), dim=-1)
        rotated: torch.Tensor = x * cos[0] + turned * sin[0]
        return rotated.float()

    queries = attention.q_proj(layer.input_layernorm(query_residuals.to(model.dtype)))
    keys = attention.k_proj(layer.input_layernorm(key_residuals.to(model.dtype)))
    query = rotate(queries[:, head * dim : (head + 1) * dim], query_positions)
    key = keys[:, kv_head * dim : (kv_head + 1) * dim]
    positions = torch.arange(len(key_of_position))
    scores = [
        query @ rotate(key[key_of_position[chunk]], chunk).T * attention.scaling
        for chunk in torch.split(positions, 1 << 17)
    ]
    is_future = positions > query_positions[:, None]
    return torch.cat(scores, dim=1).masked_fill(is_future, -torch.inf).softmax(dim=-1)


@both_dtypes
def test_previous_token_head_at_1m(dtype: torch.dtype) -> None:
    model = build(dtype=dtype)
    embedding = model.model.embed_tokens.weight[SEP_TOKEN + 1 :][:1]
    queries = torch.tensor([1, 1000, ONE_MILLION // 3, *range(ONE_MILLION - 13, ONE_MILLION)])
    attention = attention_rows(
        model,
        0,
        "previous_token",
        embedding.expand(len(queries), -1),
        queries,
        embedding,
        torch.zeros(ONE_MILLION, dtype=torch.long),
    )
    assert attention[torch.arange(len(queries)), queries - 1].min() > 0.999


@both_dtypes
@pytest.mark.parametrize("layer_idx", [1, 2])
def test_induction_head_at_1m(layer_idx: int, dtype: torch.dtype) -> None:
    """Two queries at the end of 1M keys, nearly all the worst distractor of both.

    The match of one is the furthest possible, the other has none and must rest at BOS.
    """
    spec = RetrievalSpec(hops=2)
    model = build(spec, dtype)
    bits = spec.code_bits
    own, previous, pointer = (slice(block * bits, (block + 1) * bits) for block in range(3))
    embedding = model.model.embed_tokens.weight.float()
    codes = embedding[:, own]
    distractor = spec.key_tokens[17]
    overlap = codes @ codes[distractor]
    found, absent = [token for token in spec.key_tokens if overlap[token] == bits / 4][:2]

    key_residuals = embedding[[BOS_TOKEN, *spec.filler_tokens[:2]]]
    key_residuals[1, previous] = codes[distractor]
    key_residuals[2, previous] = codes[found]
    key_of_position = torch.ones(ONE_MILLION, dtype=torch.long)
    key_of_position[0] = 0
    key_of_position[2] = 2
    queries = embedding[[found, absent]]
    if layer_idx == 2:
        queries = embedding[list(spec.filler_tokens[:2])]
        queries[:, pointer] = codes[[found, absent]]

    last = torch.tensor([ONE_MILLION - 1] * 2)
    attention = attention_rows(
        model, layer_idx, "induction", queries, last, key_residuals, key_of_position
    )
    assert attention[0, 2] > 0.99
    assert attention[1, 0] > 0.99


@pytest.mark.parametrize("code_bits", [32, 64, 128])
def test_codes_overlap_by_a_quarter_at_most(code_bits: int) -> None:
    codes = _codes(code_bits)
    assert codes.shape == (code_bits**2 - 1, code_bits)
    assert bool((codes[:, 0] == 1).all())
    overlap = codes[: 2 * code_bits] @ codes.T
    overlap[torch.arange(2 * code_bits), torch.arange(2 * code_bits)] = 0
    assert overlap.max() <= code_bits / 4


# --- Prompts and arguments ------------------------------------------------------------------------


def test_prompt_layout() -> None:
    spec = RetrievalSpec()
    prompt = needles_at_depths(300, [1.0, 0.0, 0.5], seed=9)
    ids = prompt.input_ids[0].tolist()
    assert (prompt.input_ids.shape, prompt.input_ids.dtype) == ((1, 300), torch.int64)
    assert ids[0] == BOS_TOKEN
    assert prompt.answer_positions == (295, 297, 299)
    assert [ids[position] for position in prompt.answer_positions] == list(prompt.asked)
    assert prompt.evidence_positions == ((292,), (2,), (147,))
    for key, answer, (evidence,) in zip(
        prompt.asked, prompt.answers, prompt.evidence_positions, strict=True
    ):
        assert ids[evidence - 1 : evidence + 2] == [key, answer, SEP_TOKEN]
        assert ids.count(key) == 2
        assert key in spec.key_tokens
    assert sum(token in spec.filler_tokens for token in ids) == 300 - 1 - 3 * 3 - 3 * 2
    assert torch.equal(prompt.input_ids, needles_at_depths(300, [1.0, 0.0, 0.5], seed=9).input_ids)


@both_dtypes
@pytest.mark.parametrize("asked_at", [0.25, 0.5, 0.9, 1.0])
def test_answers_questions_before_the_end(asked_at: float, dtype: torch.dtype) -> None:
    prompt = questions_in_the_middle(1024, TEN_DEPTHS, asked_at, seed=6)
    assert retrieved(build(dtype=dtype), prompt) == [True] * 10


def test_layout_with_questions_in_the_middle() -> None:
    spec = RetrievalSpec()
    prompt = questions_in_the_middle(300, [1.0, 0.0, 0.5], asked_at=0.64, seed=9)
    ids = prompt.input_ids[0].tolist()
    assert len(ids) == 300
    assert prompt.answer_positions == (187, 189, 191)  # the questions end at 192
    assert [ids[position] for position in prompt.answer_positions] == list(prompt.asked)
    assert prompt.evidence_positions == ((184,), (2,), (93,))
    for key, answer, (evidence,) in zip(
        prompt.asked, prompt.answers, prompt.evidence_positions, strict=True
    ):
        assert ids[evidence - 1 : evidence + 2] == [key, answer, SEP_TOKEN]
        assert ids.count(key) == 2
    assert all(token in spec.filler_tokens for token in ids[192:])
    at_the_end = questions_in_the_middle(300, [1.0, 0.0, 0.5], asked_at=1.0, seed=9)
    assert torch.equal(at_the_end.input_ids, needles_at_depths(300, [1.0, 0.0, 0.5], 9).input_ids)
    last_rows = build()(prompt.input_ids, use_cache=False).logits[:, -113:]
    assert retrieved(last_rows, prompt) == [True] * 3


def test_retrieved_reads_either_rows_of_questions_or_the_last_rows() -> None:
    prompt = key_value_pairs(256, 12, asked=[3, 0, 11])
    logits = build()(prompt.input_ids, use_cache=False).logits
    assert retrieved(logits, prompt) == [True] * 3
    assert retrieved(logits[:, -5:], prompt) == [True] * 3
    assert retrieved(logits[0, list(prompt.answer_positions)], prompt) == [True] * 3
    with pytest.raises(ValueError, match=r"rows of logits: found 4, allowed is 3 .* or 5\.\.256"):
        retrieved(logits[:, -4:], prompt)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RetrievalSpec(head_dim=96), "head_dim: found 96, allowed is 64, 128 or 256"),
        (lambda: RetrievalSpec(num_heads=6, num_kv_heads=4), "num_heads: found 6"),
        (lambda: RetrievalSpec(hidden_size=128), "hidden_size: found 128, allowed is at least"),
        (lambda: RetrievalSpec(num_keys=9000), "num_keys .*: found 11048, allowed is at most 4095"),
        (lambda: RetrievalSpec(hops=0), "hops: found 0"),
        (lambda: build_retrieval_model(dtype=torch.float64), "dtype: found torch.float64"),
        (lambda: single_needle(100, 1.5), "depths: found 1.5, allowed is 0..1"),
        (lambda: single_needle(5, 0.5), "length: found 5, allowed is 6..1048576"),
        (lambda: single_needle(2_000_000, 0.5), "length: found 2000000"),
        (lambda: needles_at_depths(1000, [0.5, 0.501]), "depths: found two that are 1 tokens"),
        (lambda: needles_at_depths(1000, []), r"len\(depths\): found 0, allowed is 1..32"),
        (lambda: questions_in_the_middle(1000, [0.5], 1.1), "asked_at: found 1.1, allowed is 0..1"),
        (
            lambda: questions_in_the_middle(100, [0.5], 0.05),
            "length: found 100, allowed is 101..1048576 .* and 95 tokens behind them",
        ),
        (lambda: key_value_pairs(1000, 5, asked=[5]), "asked: found 5, allowed is 0..4"),
        (lambda: key_value_pairs(1000, 400), "length: found 1000, allowed is 1217.."),
        (lambda: key_value_pairs(10_000, 2000), "num_pairs: found 2000, allowed is 1..1024"),
        (lambda: variable_tracking(1000, 0), "hops: found 0, allowed is at least 1"),
        (lambda: variable_tracking(1000, 2, num_chains=40), "num_chains: found 40"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
