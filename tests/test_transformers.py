"""attn_implementation="minference": the logits of a model are those of a plain-loop oracle with the
same patterns, however the prompt is padded, cut into chunks or cached; what is not supported says
so by name."""

from __future__ import annotations

from typing import Any

import minference_ext.transformers as integration
import pytest
import torch
from minference_ext import HeadPattern
from minference_ext.testing import (
    answer_logits,
    build_retrieval_model,
    default_patterns,
    needles_at_depths,
    retrieved,
)
from minference_ext.testing.model import RetrievalSpec
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
)
from transformers.masking_utils import causal_mask_function

from tests import reference
from tests.tiny_llama import (
    HEADS,
    KV_HEADS,
    LAYERS,
    TOLERANCE,
    VOCABULARY,
    largest_difference,
    logits,
    padded,
    tiny,
    tokens,
)

MIXED = [
    [
        HeadPattern.a_shape(9, 40),
        HeadPattern.vertical_slash(33, 110),
        HeadPattern.dense(),
        HeadPattern.tri_shape(0, 64, 20),
    ],
    [
        HeadPattern.vertical_slash(50, 130),
        HeadPattern.block_sparse(2),
        HeadPattern.a_shape(0, 1),
        HeadPattern.a_shape(64, 0),
    ],
]
COVERS_ALL = {
    "dense": HeadPattern.dense(),
    "vertical_slash": HeadPattern.vertical_slash(100_000, 100_000),
    "columns": HeadPattern.vertical_slash(100_000, 0),
    "a_shape": HeadPattern.a_shape(0, 100_000),
}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def use_oracle(model: LlamaForCausalLM, patterns: list[list[HeadPattern]]) -> None:
    """Makes the model attend by float64 loops over single heads; padding is cut off."""
    kinds = {
        "dense": reference.Dense,
        "a_shape": reference.AShape,
        "tri_shape": reference.TriShape,
        "vertical_slash": reference.VerticalSlash,
        "block_sparse": reference.BlockSparse,
    }

    def oracle(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        batch, heads, q_len, _ = q.shape
        kv_len, scale = k.shape[2], kwargs["scaling"]
        out = torch.zeros_like(q)
        for row in range(batch):
            valid = torch.ones(kv_len, dtype=torch.bool) if mask is None else mask[row]
            keys = valid.nonzero()[:, 0]
            queries = keys[keys >= kv_len - q_len] - (kv_len - q_len)
            for head in range(heads):
                of_kv = head // (heads // k.shape[1])
                q_head, k_head = q[row, head, queries], k[row, of_kv, keys]
                pattern = patterns[module.layer_idx][head]
                pairs, _ = reference.head_mask(
                    kinds[pattern.kind](*pattern.sizes), q_head, k_head, scale
                )
                result, _ = reference.attention(q_head, k_head, v[row, of_kv, keys], pairs, scale)
                out[row, head, queries] = result.to(q.dtype)
        return out.transpose(1, 2), None

    AttentionInterface.register("oracle", oracle)
    AttentionMaskInterface.register("oracle", integration.attention_mask)
    model.set_attn_implementation("oracle")


# ---- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", COVERS_ALL.values(), ids=COVERS_ALL.keys())
def test_patterns_that_cover_all_pairs_equal_eager(pattern: HeadPattern) -> None:
    model, ids = tiny(), tokens(2, 200)
    expected = logits(model, ids)
    integration.configure(model, pattern, dense_fallback=False)
    assert model.config._attn_implementation == "minference"
    assert largest_difference(logits(model, ids), expected) < TOLERANCE


def test_equals_eager_with_the_same_boolean_mask() -> None:
    model, ids = tiny(), tokens(1, 190)
    sizes = [(9, 40), (0, 100), (64, 1), (1, 30)]
    pairs = torch.stack([reference.a_shape_mask(190, 190, *size) for size in sizes])
    additive = torch.zeros(1, HEADS, 190, 190).masked_fill(~pairs, torch.finfo().min)
    expected = logits(model, ids, additive)
    integration.configure(model, [[HeadPattern.a_shape(*size) for size in sizes]] * LAYERS)
    assert largest_difference(logits(model, ids), expected) < TOLERANCE


@pytest.mark.parametrize(
    "mask",
    [None, padded(230, (0, 230), (77, 230), (170, 230)), padded(230, (0, 230), (5, 160), (0, 9))],
    ids=["no-padding", "left", "right"],
)
def test_mixed_patterns_equal_the_oracle(mask: Tensor | None) -> None:
    model, ids = tiny(), tokens(3, 230)
    use_oracle(model, MIXED)
    expected = logits(model, ids, mask)
    integration.configure(model, MIXED, dense_fallback=False)
    found = logits(model, ids, mask)
    assert largest_difference(found, expected, mask) < TOLERANCE
    assert found.isfinite().all()
    dense = logits(tiny(), ids, mask)
    assert largest_difference(found, dense, mask) > 100 * TOLERANCE  # the patterns matter


def test_chunked_prefill_equals_the_oracle() -> None:
    """Chunks estimate from their own last queries: the oracle sees the same chunks."""
    ids = tokens(2, 260)
    mask = padded(260, (0, 260), (30, 260))

    def in_chunks(model: LlamaForCausalLM) -> Tensor:
        cache, chunks = None, []
        for begin, end in ((0, 100), (100, 180), (180, 260)):
            output = model(
                input_ids=ids[:, begin:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            chunks.append(output.logits)
        return torch.cat(chunks, dim=1)

    model = tiny()
    use_oracle(model, MIXED)
    expected = in_chunks(model)
    integration.configure(model, MIXED, dense_fallback=False)
    assert largest_difference(in_chunks(model), expected, mask) < TOLERANCE


def test_short_prompts_and_chunks_are_dense() -> None:
    ids, mask = tokens(2, 50), padded(50, (0, 50), (20, 50))
    model = tiny()
    expected = logits(model, ids, mask)
    integration.configure(model, HeadPattern.a_shape(0, 1))
    assert largest_difference(logits(model, ids, mask), expected, mask) < TOLERANCE
    first = model(input_ids=ids[:, :30], attention_mask=mask[:, :30], use_cache=True)
    assert first.logits.isfinite().all()
    rest = logits(model, ids[:, 30:], mask, past_key_values=first.past_key_values)
    assert largest_difference(rest, expected[:, 30:], mask[:, 30:]) < TOLERANCE


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("chunk", [None, 70])
@pytest.mark.parametrize("mask", [None, padded(150, (0, 150), (80, 150))], ids=["full", "left"])
def test_generate_equals_sdpa(cache: str | None, chunk: int | None, mask: Tensor | None) -> None:
    model: Any = tiny("sdpa")
    ids = tokens(2, 150)

    def generate() -> Any:
        return model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            pad_token_id=0,
            cache_implementation=cache,
            prefill_chunk_size=chunk,
            disable_compile=True,
            return_dict_in_generate=True,
            output_logits=True,
        )

    expected = generate()
    integration.configure(model, HeadPattern.dense())
    found = generate()
    assert torch.equal(found.sequences, expected.sequences)
    difference = torch.stack(found.logits) - torch.stack(expected.logits)
    assert difference.abs().max() < TOLERANCE


@pytest.mark.parametrize("lengths", [(2, 1), (32, 20, 1), (63, 1, 70), (64, 3)])
@pytest.mark.parametrize("is_padded", [False, True])
def test_short_calls_with_free_slots_behind_the_keys(
    lengths: tuple[int, ...], is_padded: bool
) -> None:
    total = sum(lengths)
    ids = tokens(2, total)
    mask = padded(total, (0, total), (1, total)) if is_padded else None
    expected = logits(tiny(), ids, mask)
    model = tiny()
    integration.configure(model, HeadPattern.dense())
    cache = StaticCache(config=model.config, max_cache_len=total + 50)
    end = 0
    for length in lengths:
        begin, end = end, end + length
        found = logits(
            model,
            ids[:, begin:end],
            None if mask is None else mask[:, :end],
            past_key_values=cache,
        )
        valid = None if mask is None else mask[:, begin:end]
        assert largest_difference(found, expected[:, begin:end], valid) < TOLERANCE


def test_static_cache_prefill_equals_the_oracle() -> None:
    ids, mask = tokens(2, 150), padded(150, (0, 150), (40, 150))
    model = tiny()
    use_oracle(model, MIXED)
    expected = logits(model, ids, mask)
    integration.configure(model, MIXED, dense_fallback=False)
    cache = StaticCache(config=model.config, max_cache_len=220)
    found = logits(model, ids, mask, past_key_values=cache)
    assert largest_difference(found, expected, mask) < TOLERANCE


@pytest.mark.parametrize("mask", [None, padded(150, (0, 150), (40, 150))], ids=["full", "left"])
@pytest.mark.parametrize("free_slots", [None, 33])
def test_compiles_without_graph_breaks(mask: Tensor | None, free_slots: int | None) -> None:
    torch._dynamo.reset()
    model, ids = tiny(num_hidden_layers=1), tokens(2, 150)
    integration.configure(model, MIXED[:1])
    expected = logits(model, ids, mask)
    cache: dict[str, Any] = {"use_cache": False}
    if free_slots is not None:
        cache = {"past_key_values": StaticCache(model.config, max_cache_len=150 + free_slots)}
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert largest_difference(logits(compiled, ids, mask, **cache), expected, mask) < TOLERANCE


def test_inductor_compiles_the_attention_function() -> None:
    torch._dynamo.reset()
    module = tiny().model.layers[0].self_attn
    q = torch.randn(1, 100, HEADS, 32).transpose(1, 2)
    k, v = torch.randn(2, 1, KV_HEADS, 100, 32)
    expected, _ = integration.attention(module, q, k, v, None, scaling=0.2)
    compiled: Any = torch.compile(integration.attention, fullgraph=True)
    found, _ = compiled(module, q, k, v, None, scaling=0.2)
    assert torch.equal(found, expected)


def test_output_is_contiguous_without_a_copy() -> None:
    module = tiny().model.layers[0].self_attn
    q, k, v = torch.randn(3, 2, HEADS, 100, 32)
    for mask in (None, padded(100, (0, 100), (7, 100)), padded(100, (0, 100), (0, 70))):
        out, weights = integration.attention(module, q, k, v, mask)
        assert out.shape == (2, 100, HEADS, 32)
        assert out.is_contiguous()
        assert weights is None


# ---- The mask function ---------------------------------------------------------------------------


def mask_of(
    mask: Tensor | None, q_length: int, kv_length: int, q_offset: int | Tensor = 0
) -> Tensor | None:
    """Applied once and twice: Transformers does either."""
    arguments: dict[str, Any] = {
        "batch_size": 2,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "mask_function": causal_mask_function,
    }
    once = integration.attention_mask(attention_mask=mask, **arguments)
    twice = integration.attention_mask(attention_mask=once, **arguments)
    assert (once is None) == (twice is None)
    if once is not None and twice is not None:
        assert torch.equal(once, twice)
    return once


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
def test_mask_function(as_tensor: bool) -> None:
    def offset(number: int) -> int | Tensor:
        return torch.tensor(number) if as_tensor else number

    ones = padded(100, (0, 100), (0, 100)).bool()
    left = padded(100, (0, 100), (40, 100)).bool()
    assert mask_of(None, 100, 100, offset(0)) is None
    assert mask_of(ones, 100, 100, offset(0)) is None
    assert mask_of(ones, 64, 100, offset(36)) is None
    for q_length, seen in ((100, 0), (64, 36)):
        result = mask_of(left, q_length, 100, offset(seen))
        assert result is not None
        assert torch.equal(result, left)
        result = mask_of(left, q_length, 104, offset(seen))  # four free slots
        assert result is not None
        assert torch.equal(result, torch.nn.functional.pad(left, (0, 4)))
        result = mask_of(None, q_length, 104, offset(seen))
        assert result is not None
        assert torch.equal(result, torch.nn.functional.pad(ones, (0, 4)))


def test_short_calls_take_any_mask_that_sdpa_takes() -> None:
    """generate() may hide the newest key of all rows; users may give [query, key]."""
    ids, hidden = tokens(2, 50), padded(50, (0, 49), (3, 40))
    triangle = torch.ones(50, 50, dtype=torch.bool).tril()[None, None]
    for mask in (hidden, triangle.expand(2, 1, -1, -1), triangle & hidden.bool()[:, None, None]):
        expected = logits(tiny("sdpa"), ids, mask)
        assert torch.equal(logits(tiny("minference"), ids, mask), expected)
    prefix = tiny("minference")(input_ids=ids[:, :40], use_cache=True).past_key_values
    other = tiny("sdpa")(input_ids=ids[:, :40], use_cache=True).past_key_values
    expected = logits(tiny("sdpa"), ids[:, 40:], hidden, past_key_values=other)
    found = logits(tiny("minference"), ids[:, 40:], hidden, past_key_values=prefix)
    assert torch.equal(found, expected)


def test_short_calls_refuse_a_mask_by_slot() -> None:
    """It would broadcast over batch or queries."""
    module = tiny().model.layers[0].self_attn
    q, k, v = torch.randn(3, 2, HEADS, 2, 32)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 2\)"):
        integration.attention(module, q, k, v, padded(2, (0, 2), (1, 2)).bool())


def test_mask_function_refuses_what_it_cannot_express() -> None:
    with pytest.raises(ValueError, match=r"attention_mask covers 95 positions; .* 100"):
        mask_of(padded(95, (0, 95), (0, 95)), 70, 100, 30)
    with pytest.raises(ValueError, match=r"padding_side"):
        mask_of(padded(100, (0, 98), (0, 99)), 70, 100, 30)
    model = tiny("minference")
    positions = torch.cat((torch.arange(60), torch.arange(40)))[None]
    with pytest.raises(NotImplementedError, match=r"packed"):
        logits(model, tokens(1, 100), position_ids=positions, use_cache=False)


# ---- What is not supported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("softcap", 30.0),
        ("s_aux", torch.zeros(HEADS)),
        ("dropout", 0.1),
        ("is_causal", False),
        ("cu_seq_lens_q", torch.tensor([0, 100])),
        ("position_bias", torch.zeros(1)),
        ("output_attentions", True),
        ("argument_of_the_future", 1),
    ],
)
def test_unsupported_arguments_are_named(name: str, value: Any) -> None:
    module = tiny().model.layers[0].self_attn
    q, k, v = torch.randn(3, 1, HEADS, 100, 32)
    with pytest.raises(NotImplementedError, match=name):
        integration.attention(module, q, k, v, None, **{name: value})
    integration.attention(module, q, k, v, None, softcap=None, use_cache=True, is_causal=True)


@pytest.mark.parametrize("length", [1, 100])
def test_float8_is_refused(length: int) -> None:
    module = tiny().model.layers[0].self_attn
    q, k, v = torch.randn(3, 1, HEADS, length, 32).to(torch.float8_e4m3fn)
    with pytest.raises(NotImplementedError, match=r"query.dtype is torch\.float8_e4m3fn"):
        integration.attention(module, q, k, v, None)
    if length > 1:
        with pytest.raises(RuntimeError, match=r"k has dtype float8_e4m3fn; .* float32 as q"):
            integration.attention(module, q.float(), k, v, None)


def test_dropout_in_training_is_refused() -> None:
    model = tiny("minference", attention_dropout=0.1).train()
    with pytest.raises(NotImplementedError, match=r"dropout is 0\.1"):
        logits(model, tokens(1, 100))


def test_masks_that_are_no_padding_are_refused() -> None:
    model, ids = tiny("minference"), tokens(1, 100)
    with pytest.raises(ValueError, match=r'\(1, 1, 100, 100\).*"sdpa"'):
        logits(model, ids, torch.zeros(1, 1, 100, 100))
    hole = padded(100, (0, 100))
    hole[0, 50] = 0
    with pytest.raises(ValueError, match=r"row 0 has padding between slots 0 and 99"):
        logits(model, ids, hole)


# ---- Sliding windows -----------------------------------------------------------------------------


def mistral(window: int) -> Any:
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=32,
        initializer_range=0.2,
        sliding_window=window,
    )
    torch.manual_seed(0)
    return MistralForCausalLM._from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("window", [100, 99, 40, 1])
@pytest.mark.parametrize("mask", [None, padded(100, (0, 100), (30, 100))], ids=["full", "left"])
def test_a_sliding_window_shorter_than_the_keys_is_what_all_heads_attend(
    window: int, mask: Tensor | None
) -> None:
    model, ids = mistral(window), tokens(2, 100)
    expected = logits(model, ids, mask)
    pattern = HeadPattern.dense() if window == 100 else HeadPattern.a_shape(0, 7)
    integration.configure(model, pattern)
    assert largest_difference(logits(model, ids, mask), expected, mask) < TOLERANCE


def test_sliding_windows_compile() -> None:
    torch._dynamo.reset()
    model, ids = mistral(40), tokens(1, 100)
    expected = logits(model, ids)
    integration.configure(model, HeadPattern.dense())
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert largest_difference(logits(compiled, ids), expected) < TOLERANCE


def test_the_window_may_stand_in_the_config_alone() -> None:
    module = mistral(40).model.layers[0].self_attn
    q, k, v = torch.randn(3, 1, HEADS, 100, 32)
    expected, _ = integration.attention(module, q, k, v, None, sliding_window=40)
    module.config.layer_types = ["sliding_attention"]
    found, _ = integration.attention(module, q, k, v, None)
    assert torch.equal(found, expected)
    module.config.layer_types = ["full_attention"]
    found, _ = integration.attention(module, q, k, v, None)
    assert not torch.equal(found, expected)


def test_a_mask_with_a_local_size_need_not_be_a_window() -> None:
    """Llama 4 attends chunks of local_size keys."""

    def chunked(_: Any, __: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key // 70 == query // 70)

    def window(_: Any, __: Any, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - 70)

    sizes: dict[str, Any] = {"batch_size": 1, "q_length": 90, "kv_length": 159, "q_offset": 69}
    assert integration.attention_mask(mask_function=window, local_size=70, **sizes) is None
    for function, size in ((chunked, 70), (window, 69), (window, 71), (window, None)):
        with pytest.raises(NotImplementedError, match=r"sliding windows, not"):
            integration.attention_mask(mask_function=function, local_size=size, **sizes)


def test_chunked_masks_are_refused_while_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    sizes: dict[str, Any] = {"batch_size": 1, "q_length": 90, "kv_length": 90, "q_offset": 0}
    given = {"mask_function": causal_mask_function, "local_size": 40, **sizes}
    config = mistral(40).config
    assert integration.attention_mask(config=config, **given) is None
    config.sliding_window = None
    with pytest.raises(NotImplementedError, match=r"sliding windows, not"):
        integration.attention_mask(config=config, **given)


def test_a_mask_that_misses_the_newest_positions_is_refused_behind_a_window() -> None:
    """The cache dropped 131 of 230 positions: 140 columns reach beyond the slots, not to 230."""
    sizes: dict[str, Any] = {"q_length": 80, "kv_length": 99, "q_offset": 150, "kv_offset": 131}
    given = {"batch_size": 2, "mask_function": causal_mask_function, **sizes}
    with pytest.raises(ValueError, match=r"covers 140 positions; it must cover all 230"):
        integration.attention_mask(attention_mask=torch.ones(2, 140, dtype=torch.bool), **given)
    left = padded(230, (0, 230), (135, 230)).bool()
    by_slot = integration.attention_mask(attention_mask=left, **given)
    assert by_slot is not None
    assert torch.equal(by_slot, left[:, 131:])


# ---- Retrieval -----------------------------------------------------------------------------------


def test_retrieval_at_ten_depths() -> None:
    spec = RetrievalSpec()
    model = build_retrieval_model(spec, dtype=torch.bfloat16)
    prompt = needles_at_depths(8192, [index / 9 for index in range(10)], spec=spec)
    integration.configure(model, HeadPattern.dense())
    assert all(retrieved(model, prompt))

    integration.configure(model, HeadPattern.vertical_slash(1000, 128))
    with integration.record_plans(model) as plans:
        assert all(retrieved(answer_logits(model, prompt), prompt))
    computed = sum(int(plan.stats.computed_pairs.sum()) for plan in plans)
    causal = sum(int(plan.stats.causal_pairs.sum()) for plan in plans)
    assert computed < causal / 2

    integration.configure(model, default_patterns(spec))
    assert all(retrieved(model, prompt))

    sink, window = 1024, 2048
    integration.configure(model, HeadPattern.a_shape(sink, window))
    within_reach = [
        evidence[-1] < sink or asked - evidence[-1] < window
        for evidence, asked in zip(prompt.evidence_positions, prompt.answer_positions, strict=True)
    ]
    assert retrieved(model, prompt) == within_reach
    assert 0 < sum(within_reach) < 10
