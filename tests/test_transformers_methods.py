"""Methods in a model: its logits are those of the method called by hand on every layer's q, k and
v, however prompts are padded, cut into chunks or followed by decoding."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import minference_ext.transformers as integration
import pytest
import torch
import transformers
from minference_ext import HeadPattern, ModelPatterns
from minference_ext.methods import (
    METHODS,
    Layer,
    Method,
    Rotation,
    attend_heads,
    of_pattern,
    parse,
    stats_of_heads,
)
from minference_ext.methods.shapes import Dense
from minference_ext.testing import build_retrieval_model, needles_at_depths, retrieved
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from tests import model_families, reference
from tests.tiny_llama import (
    HEADS,
    LAYERS,
    TOLERANCE,
    largest_difference,
    logits,
    padded,
    tiny,
    tokens,
)

INFLLM = "infllm(64,64,1,64,64,4)"
TEXTS = [
    *("dense", "a_shape(3,70)", "streaming_llm(5,64)", "tri_shape(3,64,20)"),
    *("triangle_mix(1,3,64,20)", "vertical_slash(40,101)", "vertical_slash_per_chunk(40,101,128)"),
    *("block_sparse(2)", "only_vertical(40)", "only_slash(110)", "static(40,101)"),
    *("static_block_sparse(2)", "streaming_llm_dilated(5,90,2)"),
    *("streaming_llm_strided(5,33,90,2)", INFLLM, "flexprefill(0.5,0.1,None,None,64)"),
    *("xattention(8,0.5,64,1.0)", "top_k(2)", "vertical_slash_by_recall(0.9,30,64,1.0)"),
]
DENSE_IF_SHORT = {"dense", *(text for text in TEXTS if text.startswith("vertical_slash"))}
NARROW = HeadPattern.a_shape(0, 1)  # every query attends itself alone


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def by_hand(model: Any, per_layer: Sequence[Sequence[Method]]) -> list[list[int]]:
    """Makes the model call the methods of each layer itself: prompt by prompt, without padding, and
    densely for calls of fewer than 64 queries. What `stats` attends is added to the result."""
    attended: list[list[int]] = []
    rotary = model.model.rotary_emb

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        q_len, kv_len = q.shape[2], k.shape[2]
        if q_len < 64:
            pairs = reference.dense_mask(q_len, kv_len) if mask is None else mask
            keys, values = (rows.repeat_interleave(q.shape[1] // k.shape[1], 1) for rows in (k, v))
            scores = q @ keys.mT * kwargs["scaling"]
            weights = scores.masked_fill(~pairs, -math.inf).softmax(-1)
            return (weights @ values).transpose(1, 2), None
        out = torch.zeros_like(q)
        for row in range(len(q)):
            valid = torch.ones(kv_len, dtype=torch.bool) if mask is None else mask[row]
            keys_at = valid.nonzero()[:, 0]
            rows = keys_at[keys_at >= kv_len - q_len] - (kv_len - q_len)
            cos, sin = rotary(q, (rows + kv_len - q_len)[None])
            layer = Layer(
                q[row : row + 1, :, rows],
                k[row : row + 1, :, keys_at],
                v[row : row + 1, :, keys_at],
                layer_idx=module.layer_idx,
                softmax_scale=kwargs["scaling"],
                rotation=Rotation(cos[0], sin[0]),
            )
            methods = per_layer[module.layer_idx]
            attended.append(stats_of_heads(methods, layer).attended_pairs[0].tolist())
            out[row, :, rows] = attend_heads(methods, layer)[0][0]
        return out.transpose(1, 2), None

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", integration.attention_mask)
    model.set_attn_implementation("by_hand")
    return attended


def run_by_hand(text: str, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    model = tiny()
    by_hand(model, [[parse(text)]] * LAYERS)
    found: Tensor = logits(model, ids, mask)
    return found


def configured(*arguments: Any, **options: Any) -> Any:
    model = tiny()
    integration.configure(model, *arguments, **options)
    return model


def test_all_methods_are_tried() -> None:
    names = {type(parse(text)) for text in TEXTS}
    assert names == {method for method in METHODS if method.name != "patterns"}


# ---- One method for all heads --------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_equals_the_method_by_hand(text: str) -> None:
    ids = tokens(1, 270)
    model = configured(parse(text))
    assert model.config._attn_implementation == "minference"
    found = logits(model, ids)
    assert largest_difference(found, run_by_hand(text, ids)) < TOLERANCE
    if text not in DENSE_IF_SHORT:
        assert largest_difference(found, logits(tiny(), ids)) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "spans",
    [((0, 260), (40, 260), (130, 260)), ((0, 260), (0, 220), (0, 130)), ((0, 260), (50, 250))],
    ids=["left", "right", "both"],
)
@pytest.mark.parametrize("text", TEXTS)
def test_padded_rows_equal_prompts_alone(text: str, spans: tuple[tuple[int, int], ...]) -> None:
    ids, mask = tokens(len(spans), 260), padded(260, *spans)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # of each row's own, as generate gives them
    found = logits(configured(parse(text)), ids, mask, position_ids=positions)
    assert found.isfinite().all()
    alone = configured(parse(text))  # the first row is the first prompt it meets, as in the batch
    for row, (begin, end) in enumerate(spans):
        expected = logits(alone, ids[row : row + 1, begin:end])
        difference = largest_difference(found[row : row + 1, begin:end], expected)
        assert difference < TOLERANCE, row


def test_rows_may_begin_at_any_position() -> None:
    """Without position ids Transformers counts the padding; far keys are as far all the same."""
    spans = ((0, 260), (40, 260), (130, 260))
    ids, mask = tokens(3, 260), padded(260, *spans)
    found = logits(configured(parse(INFLLM)), ids, mask)
    for row, (begin, end) in enumerate(spans):
        expected = logits(configured(parse(INFLLM)), ids[row : row + 1, begin:end])
        difference = largest_difference(found[row : row + 1, begin:end], expected)
        assert difference < 10 * TOLERANCE, row  # float32 angles of other positions


@pytest.mark.parametrize("text", TEXTS)
def test_chunks_and_decoding(text: str) -> None:
    ids = tokens(2, 262)
    mask = padded(262, (0, 262), (30, 262))
    whole = parse(text).needs_whole_prompt
    cuts = (0, 260, 261, 262) if whole else (0, 120, 190, 260, 261, 262)

    def run(model: Any) -> Tensor:
        cache, found = None, []
        for begin, end in pairwise(cuts):
            output = model(
                input_ids=ids[:, begin:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            found.append(output.logits)
        return torch.cat(found, dim=1)

    hand = tiny()
    by_hand(hand, [[parse(text)]] * LAYERS)
    found = run(configured(parse(text)))
    assert largest_difference(found, run(hand), mask) < TOLERANCE


@pytest.mark.parametrize("text", [text for text in TEXTS if parse(text).needs_whole_prompt])
def test_methods_of_whole_prompts_refuse_chunks(text: str) -> None:
    model, ids = configured(parse(text)), tokens(1, 200)
    first = model(input_ids=ids[:, :100], use_cache=True)
    with pytest.raises(
        ValueError, match=r"attends whole prompts: found 100 queries for 200 keys, and it does not"
    ):
        model(input_ids=ids[:, 100:], past_key_values=first.past_key_values, use_cache=True)


def test_generate_after_a_sparse_prefill() -> None:
    model: Any = configured(parse("streaming_llm_dilated(5,90,2)"))
    hand: Any = tiny()
    by_hand(hand, [[parse("streaming_llm_dilated(5,90,2)")]] * LAYERS)
    ids, mask = tokens(2, 150), padded(150, (0, 150), (60, 150))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    found, expected = (m.generate(ids, attention_mask=mask, **options) for m in (model, hand))
    assert torch.equal(found, expected)


# ---- Several methods -----------------------------------------------------------------------------

ROWS: list[list[HeadPattern | str]] = [
    [HeadPattern.a_shape(3, 40), INFLLM, "only_slash(110)", INFLLM],
    ["static_block_sparse(2)", HeadPattern.dense(), INFLLM, HeadPattern.block_sparse(2)],
]


def test_heads_mix_methods_and_patterns() -> None:
    ids, mask = tokens(2, 270), padded(270, (0, 270), (33, 270))

    def methods() -> list[list[HeadPattern | Method]]:
        return [[parse(h) if isinstance(h, str) else h for h in row] for row in ROWS]

    hand, model = tiny(), configured(methods())
    for module in (layer.self_attn for m in (hand, model) for layer in m.model.layers):
        module.scaling = 0.3  # not the root of head_dim
    by_hand(
        hand,
        [[of_pattern(h) if isinstance(h, HeadPattern) else h for h in row] for row in methods()],
    )
    difference = largest_difference(logits(model, ids, mask), logits(hand, ids, mask), mask)
    assert difference < TOLERANCE


def test_starting_layer() -> None:
    ids = tokens(1, 200)
    hand = tiny()
    by_hand(hand, [[parse("dense")], [parse(INFLLM)]])
    found = configured(parse(INFLLM), starting_layer=1)
    assert largest_difference(logits(found, ids), logits(hand, ids)) < TOLERANCE
    layers = [layer.self_attn for layer in found.model.layers]
    assert [len(layer._forward_pre_hooks) for layer in layers] == [0, 1]
    nowhere = configured(parse(INFLLM), starting_layer=LAYERS)
    assert largest_difference(logits(nowhere, ids), logits(tiny(), ids)) < TOLERANCE


def test_a_file_of_patterns_as_a_method(tmp_path: Path) -> None:
    rows = [[NARROW] * HEADS, [HeadPattern.a_shape(3, 40)] * HEADS]
    path = tmp_path / "patterns.json"
    ModelPatterns(rows).save(path)
    ids = tokens(1, 150)
    expected = logits(configured(rows), ids)
    assert torch.equal(logits(configured(parse(str(path))), ids), expected)
    ModelPatterns([*rows, rows[0]]).save(path)
    with pytest.raises(ValueError, match=r"patterns has 3 layers with 4 heads; this model needs 2"):
        configured(parse(str(path)))


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ([[parse("dense")] * HEADS], r"patterns has 1 layers with \[4\] heads; .* 2 layers with 4"),
        ([[parse("dense")] * 3] * LAYERS, r"patterns has 2 layers with \[3\] heads"),
        ([parse("dense")] * LAYERS, r"patterns has 2 layers with \[1\] heads"),
        (
            [[parse("dense"), "dense", NARROW, NARROW]] * LAYERS,
            r"layer 0, head 1: found 'dense'; it must be a HeadPattern or a Method",
        ),
        (
            [[parse("dense")] * HEADS, [HeadPattern.block_index(), *[parse("dense")] * 3]],
            r"layer 1, head 0: kind is 'block_index'; it must be one of",
        ),
    ],
)
def test_configure_checks_methods(patterns: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        configured(patterns)


# ---- What a model keeps --------------------------------------------------------------------------


def kept_rotations(model: Any) -> list[Rotation]:
    """cos and sin of a prompt that its modules still hold."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [value for value in values if isinstance(value, Rotation)]


def test_hooks_go_with_the_method_that_needs_them() -> None:
    model, ids = tiny(), tokens(1, 150)
    modules = [layer.self_attn for layer in model.model.layers]
    for _ in range(2):  # configuring again replaces them
        integration.configure(model, parse(INFLLM))
        counts = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in modules]
        assert counts == [(1, 1)] * LAYERS
    logits(model, ids)
    assert not kept_rotations(model)
    model.train()
    for module in modules:
        module.attention_dropout = 0.5
    with pytest.raises(NotImplementedError, match=r"dropout"):
        logits(model, ids)
    assert not kept_rotations(model)
    for module in modules:
        module.attention_dropout = 0.0
    model.eval()
    for others in (NARROW, parse("a_shape(0,1)")):
        integration.configure(model, others)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in modules)
        assert torch.equal(logits(model, ids), logits(configured(others), ids))


def test_configured_models_can_be_copied_and_pickled() -> None:
    """Copies run what the model runs, and are configured apart from it."""
    ids = tokens(1, 270)
    for text in (INFLLM, "static(40,101)"):
        model = configured(parse(text))
        expected = logits(model, ids)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(logits(copied, ids), expected), text
            integration.configure(copied, NARROW)
            assert not any(layer.self_attn._forward_pre_hooks for layer in copied.model.layers)
            assert torch.equal(logits(copied, ids), logits(configured(NARROW), ids))
        assert torch.equal(logits(model, ids), expected), text


def test_one_prompt_is_attended_in_place() -> None:
    """A second output of a layer would be the largest tensor of a long prefill."""
    outputs: list[Tensor] = []

    class Watched(Dense):
        def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
            found = super().attend(layer)
            outputs.append(found[0])
            return found

    model = configured(Watched())
    q = torch.randn(1, HEADS, 70, 32)
    k = torch.randn(1, HEADS // 2, 70, 32)
    module = model.model.layers[0].self_attn
    out, _ = integration.attention(module, q, k, k, None)
    assert out.data_ptr() == outputs[0].data_ptr()


@pytest.mark.parametrize("text", ["xattention", "vertical_slash(30,800)"])
def test_text_of_a_method_is_not_taken_for_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"no file but a method: pass .*methods\.parse\('"):
        configured(text)
    with pytest.raises(FileNotFoundError, match=r"'no_method' must be a file"):
        configured("no_method")


def test_memory_is_the_methods() -> None:
    first, then = tokens(1, 300), tokens(2, 300)[1:]
    method = parse("static_block_sparse(2)")
    model = configured(method)
    logits(model, first)
    after_first = logits(model, then)
    fresh = run_by_hand("static_block_sparse(2)", then)
    assert largest_difference(after_first, fresh) > 100 * TOLERANCE
    method.forget()
    assert largest_difference(logits(model, then), fresh) < TOLERANCE


def test_record_plans() -> None:
    ids, mask = tokens(2, 270), padded(270, (0, 270), (33, 270))
    rows = [[parse("only_slash(110)"), parse(INFLLM)] * 2] * LAYERS
    hand = tiny()
    attended = by_hand(hand, rows)
    logits(hand, ids, mask)
    model = configured(rows)
    with integration.record_plans(model) as plans:
        logits(model, ids, mask)
        logits(model, ids[:, :20], mask[:, :20])  # dense: no plan
    assert [plan.layer_idx for plan in plans] == [0, 0, 1, 1]  # one of each row
    assert [plan.stats.attended_pairs[0].tolist() for plan in plans] == attended
    assert [int(plan.stats.causal_pairs[0, 0]) for plan in plans] == [270 * 271 // 2, 237 * 119] * 2


def test_sliding_windows_stay() -> None:
    config = transformers.MistralConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=100,
        initializer_range=0.2,
    )
    model: Any = transformers.MistralForCausalLM._from_config(config, attn_implementation="eager")
    model.eval()
    for length, is_windowed in ((150, True), (100, False)):
        ids = tokens(1, length)
        model.set_attn_implementation("eager")
        dense = logits(model, ids)
        integration.configure(model, parse(INFLLM))
        difference = largest_difference(logits(model, ids), dense)
        assert (difference < TOLERANCE) == is_windowed  # the window, or the method within it


def test_torch_compile_is_refused() -> None:
    torch._dynamo.reset()
    model: Any = torch.compile(configured(parse("a_shape(3,70)")), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"methods run eagerly; compile with patterns alone"):
        logits(model, tokens(1, 150))


# ---- Rotations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["mistral", "qwen2", "qwen3", "phi3", "gemma"], ids=lambda name: str(name)
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotations_that_methods_can_undo(name: str, dtype: torch.dtype) -> None:
    (family,) = [family for family in model_families.FAMILIES if family.name == name]
    model: Any = model_families.build(dataclasses.replace(family, window=None)).to(dtype)
    integration.configure(model, parse(INFLLM))
    seen: list[tuple[Tensor, ...]] = []
    module = model.model.layers[0].self_attn

    def spy(module: Any, q: Tensor, k: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        seen.append((q.float(), k.float()))
        return q.transpose(1, 2), None

    AttentionInterface.register("spy", spy)
    module.config._attn_implementation = "spy"
    hidden = torch.randn(1, 5, model.config.hidden_size, dtype=dtype)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(3, 8)[None])
    for tables in ((cos, sin), (torch.ones_like(cos), torch.zeros_like(sin))):
        module(hidden_states=hidden, position_embeddings=tables, attention_mask=None)
    width, pairs = cos.shape[-1], cos.shape[-1] // 2
    phase = torch.complex(cos.float(), sin.float())[0, :, :pairs]
    for rotated, plain in zip(*seen, strict=True):
        turned = torch.complex(plain[..., :pairs], plain[..., pairs:width]) * phase
        expected = torch.cat((turned.real, turned.imag, plain[..., width:]), dim=-1)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(rotated, expected, rtol=tolerance, atol=tolerance)


def other_models() -> dict[str, tuple[Any, str]]:
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    by_pairs = r"does not rotate element n of a head's first elements with element n \+ rotary_dim"
    latent: dict[str, Any] = {
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    }
    axes = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return {
        "interleaved": (transformers.CohereConfig(**sizes), rf"layer 0 .*{by_pairs}"),
        "layers-without": (transformers.SmolLM3Config(**sizes), rf"layer 3 .*{by_pairs}"),
        "last-elements": (transformers.DeepseekV3Config(**sizes, **latent), r"layer 0 does not"),
        "half-tables": (transformers.GptOssConfig(**sizes), r"takes no cos and sin of \d+ element"),
        "axes": (
            transformers.Qwen2VLTextConfig(**sizes, rope_parameters=axes),
            r"rotates by several axes \(mrope_section\)",
        ),
    }


@pytest.mark.parametrize(
    "name", ["interleaved", "layers-without", "last-elements", "half-tables", "axes"]
)
def test_rotations_that_methods_cannot_undo(name: str) -> None:
    config, sentence = other_models()[name]
    auto = transformers.AutoModel if name == "axes" else transformers.AutoModelForCausalLM
    model: Any = auto.from_config(config, attn_implementation="eager")
    with pytest.raises(ValueError, match=rf"infllm turns queries and keys back, .*{sentence}"):
        integration.configure(model, parse(INFLLM))
    assert model.config._attn_implementation == "eager"
    integration.configure(model, parse("a_shape(3,70)"))  # which needs none
    integration.configure(model, parse(INFLLM), starting_layer=4)  # nowhere


# ---- Retrieval -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("infllm(64,256,100,64,64,4)", True),  # what is asked for is far, at no distance of its own
        ("top_k(8)", True),
        ("a_shape(64,256)", False),
        ("infllm(64,256,0,64,64,4)", False),
        ("streaming_llm_dilated(64,4096,2)", False),  # no query attends the token before its own
    ],
)
def test_retrieval(text: str, finds: bool) -> None:
    model = build_retrieval_model()
    prompt = needles_at_depths(1500, [0.3, 0.6])
    integration.configure(model, parse(text))
    assert all(retrieved(model, prompt)) == finds
