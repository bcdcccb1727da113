"""A `LlamaForCausalLM` that retrieves, every weight of which is given by a formula.

Each token owns a code of +-1 bits. Layer 0 writes the previous token's code beside each token;
every further layer looks up the position whose previous token is the one asked for, and copies the
code found there. The readout compares with all codes. What a newcomer would get wrong: RMSNorm. One
constant coordinate carries nearly all of the residual's energy, so the norm is a known number and
its weight undoes it: every projection below reads the residual in its own units.

Residual (n = code bits = head_dim / 2); columns that are not named stay zero:

    columns        name      content
    0 .. n-1       own       code of the token
    n .. 2n-1      previous  code of the token before, written by layer 0
    2n .. 3n-1     pointer   code of the token looked up so far, zero where nothing matched
    3n             constant  64 at every position
    3n+1           anchor    +8 at BOS, -8 at SEP, else 0

The codes of BOS and SEP are zero: they match nothing and add nothing. Bit 0 of all other codes says
whether the token is a key.

Keys have the same layout in all heads of all layers, so any query role works in any group of query
heads. With P = head_dim / 2 RoPE pairs of frequency w_p = theta^(-p/P), and p0 = P/2 - 1:

    pairs          key holds                  query role that reads it
    0 .. p0-1      constants: position only   previous_token, local
    p0 .. P-2      previous code              induction; slow: cos(w_p o) is near 1 up to o = 1M
    P-1            anchor                     sink, and induction's resting place

    layer          query head                 value read and written
    0              1: previous_token          own -> previous
    l >= 1         H-2: induction             own (from l = 2 on: own - previous) -> pointer
    all            the others: local, sink    nothing: their columns of o_proj are zero

The two working heads belong to different kv heads (where there are two), and neither is the first
or last of its layer, so that a wrong head mapping cannot go unseen.

Two layers answer "which value has key K". Each further layer follows the pointer once more: it
matched a position whose previous token is the pointer's token, so adding own - previous replaces
the pointer by its successor.

Scores, in nats after the softmax scale. Two codes overlap by a quarter at most, so a distractor
reaches at most 15 where a match reaches 60, and 1M distractors add ln(2^20) = 13.9 to that:

    induction       match 60, sink 42, all distractors together below 30 (RMSNorm moves these by up
                    to 2%, RoPE over 1M tokens by up to 3%). A match takes all. Without one BOS
                    does, whose value is zero.
                    A match at SEP is worth 60 - 42. So [K, V, SEP] is found under K, and V, even if
                    it is a key as well, finds nothing there.
                    A pointer that is no key raises the sink to 90: an ended chain stays put.
    previous_token  20 sum_p (1 - cos(w_p (o - 1))) below its peak, over p = 0 .. 11: 15 at the
                    neighbours o = 0 and 2, 40 or more elsewhere (head_dim 64: 11 and 32).

Precision: bf16 rounds q, k, cos and sin by 2^-9 each, incoherently over the components, and the
fp32 angle of pair 1 near position 1M is off by up to 0.03. Measured there in bf16 the gap of
previous_token shrinks by 0.3, and the scores of induction move by 0.1 (head_dim 64: 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from minference_ext.patterns import HeadPattern

ROPE_THETA = 1e13
MAX_POSITIONS = 1 << 20
BOS_TOKEN = 0
SEP_TOKEN = 1

_CONSTANT = 64.0
_ANCHOR = 8.0

_MATCH_SCORE = 60.0
_SINK_SCORE = 42.0
_FINISHED_SCORE = 90.0  # sink score of an induction head whose pointer is no key
# Each RoPE pair's share of the peak score of a positional head. A local head needs no sharp edge,
# and a lower peak loses less to bf16.
_PREVIOUS_PAIR_SCORE = 20.0
_LOCAL_PAIR_SCORE = 8.0
_POSITION_PAIRS = 12  # RoPE pairs a positional head reads
_LOCAL_WINDOWS = (64, 256)  # local heads alternate; over 0.99 of their mass lies inside
# A positional head that starts at frequency w has 0.9999 of its mass on offsets below 1.1 / w.
_LOCAL_REACH = 1.1

# Components of the keys. Only products with the query count; these keep both sides of similar size.
_KEY_POSITION = 8.0
_KEY_CODE = 2.0

_ANSWER_LOGIT = 32.0
_NO_ANSWER_LOGIT = 16.0  # SEP's, where the pointer is empty; a wrong token reaches at most 8

# Tap t of the recurrence s[k + m] = s[k + t] ^ s[k] that has the full period 2^m - 1.
_RECURRENCE_TAP = {5: 2, 6: 1, 7: 1}


@dataclass(frozen=True)
class RetrievalSpec:
    """Shape of a retrieval model and the layout of its vocabulary: BOS, SEP, keys, values, fillers.

    hops: how many assignments the model can follow; it has 1 + hops layers.
    The defaults are one benchmarked shape: 8 query heads, 2 kv heads, head_dim 128.
    """

    num_keys: int = 1024
    num_values: int = 1024
    num_fillers: int = 1024
    hidden_size: int = 512
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 128
    intermediate_size: int = 64
    hops: int = 1

    def __post_init__(self) -> None:
        for name in ("num_keys", "num_values", "num_fillers", "num_kv_heads", "hops"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.intermediate_size >= 1, "intermediate_size", self.intermediate_size, ">= 1")
        _require(self.head_dim in (64, 128, 256), "head_dim", self.head_dim, "64, 128 or 256")
        _require(
            self.num_heads >= 4 and self.num_heads % self.num_kv_heads == 0,
            "num_heads",
            self.num_heads,
            f"a multiple of num_kv_heads ({self.num_kv_heads}), at least 4",
        )
        _require(
            self.hidden_size >= 4 * self.code_bits,
            "hidden_size",
            self.hidden_size,
            f"at least 2 * head_dim ({4 * self.code_bits})",
        )
        num_coded = self.vocab_size - 2
        num_codes = self.code_bits**2 - 1
        _require(
            num_coded <= num_codes,
            "num_keys + num_values + num_fillers",
            num_coded,
            f"at most {num_codes}, the number of codes at head_dim {self.head_dim}",
        )

    @property
    def code_bits(self) -> int:
        return self.head_dim // 2

    @property
    def num_layers(self) -> int:
        return 1 + self.hops

    @property
    def vocab_size(self) -> int:
        return 2 + self.num_keys + self.num_values + self.num_fillers

    @property
    def key_tokens(self) -> range:
        return range(2, 2 + self.num_keys)

    @property
    def value_tokens(self) -> range:
        return range(self.key_tokens.stop, self.key_tokens.stop + self.num_values)

    @property
    def filler_tokens(self) -> range:
        return range(self.value_tokens.stop, self.vocab_size)


def _require(holds: bool, argument: str, found: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{argument}: found {found}, allowed is {allowed}")


def head_roles(spec: RetrievalSpec) -> list[list[str]]:
    """Role of each query head, [num_layers][num_heads].

    previous_token, induction, local or sink.
    """
    roles = []
    for layer in range(spec.num_layers):
        row = ["local" if head % 2 == 0 else "sink" for head in range(spec.num_heads)]
        if layer == 0:
            row[1] = "previous_token"
        else:
            row[spec.num_heads - 2] = "induction"
        roles.append(row)
    return roles


def default_patterns(spec: RetrievalSpec) -> list[list[HeadPattern]]:
    """A pattern that keeps what each head attends to, [num_layers][num_heads]."""
    by_role: dict[str, HeadPattern] = {
        "previous_token": HeadPattern.vertical_slash(64, 128),
        "induction": HeadPattern.vertical_slash(1000, 128),
        "local": HeadPattern.a_shape(64, 512),
        "sink": HeadPattern.a_shape(64, 128),
    }
    return [[by_role[role] for role in row] for row in head_roles(spec)]


def build_retrieval_model(
    spec: RetrievalSpec | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
    seed: int = 0,
) -> LlamaForCausalLM:
    """Build the model on the CPU, in eval mode, without gradients.

    dtype: float32, bfloat16 or float16, of the weights; RoPE frequencies stay float32.
    attn_implementation: any name registered with Transformers.
    seed: which token gets which code. It changes no margin.
    """
    spec = RetrievalSpec() if spec is None else spec
    allowed = (torch.float32, torch.bfloat16, torch.float16)
    _require(dtype in allowed, "dtype", dtype, ", ".join(map(str, allowed)))
    # Transformers 5 turns this into rope_parameters, which 4.57 does not know.
    rope: dict[str, Any] = {"rope_theta": ROPE_THETA}
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        **rope,
        rms_norm_eps=1e-6,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
        bos_token_id=BOS_TOKEN,
        eos_token_id=SEP_TOKEN,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):  # the library's random initialisation is overwritten
        from_config: Callable[..., LlamaForCausalLM] = AutoModelForCausalLM.from_config
        model = from_config(config, attn_implementation=attn_implementation)
    _check_frequencies(model, spec)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _set_embedding_and_readout(model, spec, seed)
        for layer_idx in range(spec.num_layers):
            _set_layer(model, spec, layer_idx)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)  # not model.to(): it would round inv_freq too
    model.requires_grad_(False)
    model.train(False)
    return model


def _check_frequencies(model: LlamaForCausalLM, spec: RetrievalSpec) -> None:
    slowest = float(model.model.rotary_emb.inv_freq[-1])
    expected = ROPE_THETA ** (2 / spec.head_dim - 1)
    if not math.isclose(slowest, expected, rel_tol=1e-3):
        raise RuntimeError(
            f"rope_theta: this Transformers version built a slowest RoPE frequency of {slowest:g}, "
            f"expected is {expected:g}"
        )


def _codes(code_bits: int) -> torch.Tensor:
    """All codes but the zero word, as +-1, [code_bits**2 - 1, code_bits]; bit 0 is always +1.

    The dual of the two-error-correcting BCH code of length 2^m - 1, extended by a constant bit.
    With s the sequence of maximal period, its generator rows are s[i + j] and s[i + 3j] over the
    columns j. It is linear with weights within 2^m / 2 +- 2^m / 8, so two codes agree in at most
    5/8 of their bits: their dot product is at most code_bits / 4, whatever bit 0 is set to.
    """
    degree = code_bits.bit_length() - 1
    period = code_bits - 1
    sequence = [1] + [0] * (degree - 1)
    while len(sequence) < period:
        k = len(sequence) - degree
        sequence.append(sequence[k + _RECURRENCE_TAP[degree]] ^ sequence[k])
    rows = [
        [0] + [sequence[(shift + step * column) % period] for column in range(period)]
        for step in (1, 3)
        for shift in range(degree)
    ]
    generator = torch.tensor(rows, dtype=torch.float32)  # [2 * degree, code_bits]
    words = torch.arange(1, code_bits**2)
    message = (words[:, None] >> torch.arange(2 * degree)) & 1  # [code_bits**2 - 1, 2 * degree]
    return 1.0 - 2.0 * (message.float() @ generator).remainder(2)


def _frequencies(spec: RetrievalSpec) -> torch.Tensor:
    pairs = spec.head_dim // 2
    return ROPE_THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


class _Columns:
    """Columns of the residual and of a head, as the module's tables name them."""

    def __init__(self, spec: RetrievalSpec) -> None:
        bits = spec.code_bits
        self.own = torch.arange(bits)
        self.previous = self.own + bits
        self.pointer = self.own + 2 * bits
        self.constant = 3 * bits
        self.anchor = 3 * bits + 1

        # Transformers rotates column p of a head with column p + head_dim / 2.
        pairs = spec.head_dim // 2
        self.num_position_pairs = pairs // 2 - 1
        self.position = torch.arange(self.num_position_pairs)
        code_pairs = torch.arange(self.num_position_pairs, pairs - 1)
        self.code = torch.cat((code_pairs, code_pairs + pairs))
        self.anchor_pair = pairs - 1

        self.own_value = torch.arange(bits)
        self.previous_value = self.own_value + bits


def _norm_weight(spec: RetrievalSpec, num_codes_written: int) -> float:
    """RMSNorm weight that undoes the normalisation of a residual that holds this many codes."""
    energy = _CONSTANT**2 + num_codes_written * spec.code_bits
    return math.sqrt(energy / spec.hidden_size)


def _set_embedding_and_readout(model: LlamaForCausalLM, spec: RetrievalSpec, seed: int) -> None:
    columns = _Columns(spec)
    codes = _codes(spec.code_bits)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    token_codes = codes[order[: spec.vocab_size - 2]]  # [vocab_size - 2, code_bits]
    token_codes[spec.num_keys :, 0] = -1.0  # the order of tokens is BOS, SEP, keys, others

    embedding = model.model.embed_tokens.weight  # [vocab_size, hidden_size]
    embedding[:, columns.constant] = _CONSTANT
    embedding[BOS_TOKEN, columns.anchor] = _ANCHOR
    embedding[SEP_TOKEN, columns.anchor] = -_ANCHOR
    embedding[2:, columns.own] = token_codes

    model.model.norm.weight.fill_(_norm_weight(spec, 3))
    readout = model.lm_head.weight  # [vocab_size, hidden_size]
    readout[2:, columns.pointer] = token_codes * (_ANSWER_LOGIT / spec.code_bits)
    readout[SEP_TOKEN, columns.constant] = _NO_ANSWER_LOGIT / _CONSTANT


def _set_layer(model: LlamaForCausalLM, spec: RetrievalSpec, layer_idx: int) -> None:
    columns = _Columns(spec)
    layer = model.model.layers[layer_idx]
    layer.input_layernorm.weight.fill_(_norm_weight(spec, min(layer_idx + 1, 3)))
    layer.post_attention_layernorm.weight.fill_(1.0)  # feeds an MLP of zeros

    heads = (-1, spec.head_dim, spec.hidden_size)
    key = layer.self_attn.k_proj.weight.view(heads)  # [num_kv_heads, head_dim, hidden_size]
    key[:, columns.position, columns.constant] = _KEY_POSITION / _CONSTANT
    key[:, columns.code, columns.previous] = _KEY_CODE
    key[:, columns.anchor_pair, columns.anchor] = 1.0

    value = layer.self_attn.v_proj.weight.view(heads)  # [num_kv_heads, head_dim, hidden_size]
    value[:, columns.own_value, columns.own] = 1.0
    value[:, columns.previous_value, columns.previous] = 1.0

    query = layer.self_attn.q_proj.weight.view(heads)  # [num_heads, head_dim, hidden_size]
    # [hidden_size, num_heads, head_dim]
    output = layer.self_attn.o_proj.weight.view(spec.hidden_size, spec.num_heads, spec.head_dim)
    num_local = 0
    for head, role in enumerate(head_roles(spec)[layer_idx]):
        if role == "previous_token":
            _attend_offset(query[head], spec, 1, _PREVIOUS_PAIR_SCORE, first_pair=0)
            output[columns.previous, head, columns.own_value] = 1.0
        elif role == "local":
            window = _LOCAL_WINDOWS[num_local % len(_LOCAL_WINDOWS)]
            first_pair = _first_local_pair(spec, window)
            _attend_offset(query[head], spec, 0, _LOCAL_PAIR_SCORE, first_pair)
            num_local += 1
        elif role == "sink":
            _attend_anchor(query[head], spec, _SINK_SCORE)
        else:
            is_first = layer_idx == 1
            _attend_match(query[head], spec, is_first)
            output[columns.pointer, head, columns.own_value] = 1.0
            if not is_first:
                output[columns.pointer, head, columns.previous_value] = -1.0


def _attend_offset(
    query: torch.Tensor, spec: RetrievalSpec, offset: int, pair_score: float, first_pair: int
) -> None:
    """Score sum_p pair_score * cos(w_p (o - offset)) for the key o tokens back.

    query: [head_dim, hidden_size].
    RoPE turns query and key by their positions, so the query is turned back by `offset` here.
    """
    columns = _Columns(spec)
    last_pair = min(first_pair + _POSITION_PAIRS, columns.num_position_pairs)
    pair = torch.arange(first_pair, last_pair)
    angle = _frequencies(spec)[pair] * offset
    scale = pair_score * math.sqrt(spec.head_dim) / (_KEY_POSITION * _CONSTANT)
    query[pair, columns.constant] = (scale * angle.cos()).float()
    query[pair + spec.head_dim // 2, columns.constant] = (-scale * angle.sin()).float()


def _first_local_pair(spec: RetrievalSpec, window: int) -> int:
    """The fastest RoPE pair whose positional head still fills `window`."""
    return int((_frequencies(spec) * window > _LOCAL_REACH).sum()) - 1


def _attend_anchor(query: torch.Tensor, spec: RetrievalSpec, score: float) -> None:
    """Score `score` at BOS, -score at SEP, 0 elsewhere; query [head_dim, hidden_size]."""
    columns = _Columns(spec)
    scale = math.sqrt(spec.head_dim) / (_ANCHOR * _CONSTANT)
    query[columns.anchor_pair, columns.constant] = score * scale


def _attend_match(query: torch.Tensor, spec: RetrievalSpec, is_first: bool) -> None:
    """Score _MATCH_SCORE where the previous token is the one looked up.

    The first induction layer looks up the own token, whatever it is; later ones the pointer, if it
    is a key. query: [head_dim, hidden_size].
    """
    columns = _Columns(spec)
    scale = math.sqrt(spec.head_dim)
    looked_up = columns.own if is_first else columns.pointer
    query[columns.code, looked_up] = _MATCH_SCORE * scale / (_KEY_CODE * spec.code_bits)
    if is_first:
        _attend_anchor(query, spec, _SINK_SCORE)
        return
    # Linear in bit 0 of the pointer: +1 for a key, -1 for any other token.
    _attend_anchor(query, spec, (_FINISHED_SCORE + _SINK_SCORE) / 2)
    slope = (_SINK_SCORE - _FINISHED_SCORE) / 2
    query[columns.anchor_pair, columns.pointer[0]] = slope * scale / _ANCHOR
