"""attn_implementation="minference" in models of many families, caches, paddings and chunkings: the
largest difference to eager attention under the same mask, printed as a table.

The truth is float64 throughout; eager in float32 is measured against it as "minference" is. No
cache may change it. For dense patterns it is one call, so that neither may chunks. For sparse ones
`Oracle` takes Transformers' own additive mask of each call (causality, padding, sliding window by
absolute position), removes what every head's pattern leaves out, and goes on as eager does.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import minference_ext.transformers as integration
import pytest
import tokenizers
import torch
import transformers
from minference_ext import HeadPattern
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedTokenizerFast,
    StaticCache,
    pipeline,
)
from transformers.masking_utils import eager_mask

from tests import reference
from tests.model_families import (
    BY_NAME,
    FAMILIES,
    FIRST_WORD,
    LAYERS,
    REFUSED,
    VOCABULARY,
    Family,
    build,
    float64_throughout,
)

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

PROMPT, DECODED, FREE_SLOTS = 420, 3, 30
MIN_QUERIES = 64  # calls with fewer are dense

# Ours may be twice as wrong as eager, the rule of check.py, plus a few roundings of the largest
# logit, for where eager is lucky.
TIMES_EAGER, ROUNDINGS = 2.0, 2
# A selection closer than this could differ between two float32 models that both are right.
MIN_GAP = 1e-4

# [layers][heads], repeated where there are more heads.
PATTERNS = {
    "dense": [[HeadPattern.dense()], [HeadPattern.dense()]],
    "mixed": [
        [
            HeadPattern.a_shape(9, 40),
            HeadPattern.vertical_slash(60, 102),
            HeadPattern.dense(),
            HeadPattern.tri_shape(0, 64, 20),
        ],
        [
            HeadPattern.vertical_slash(40, 101),
            HeadPattern.block_sparse(2),
            HeadPattern.a_shape(0, 1),
            HeadPattern.a_shape(64, 0),
        ],
    ],
    # Nothing is estimated: roundings of bfloat16 would flip selections.
    "fixed": [
        [HeadPattern.a_shape(9, 40), HeadPattern.tri_shape(0, 64, 20)],
        [HeadPattern.a_shape(0, 1), HeadPattern.a_shape(64, 0)],
    ],
}

Cache = Literal["none", "dynamic", "full", "static"]  # full: layers with windows keep all keys
Padding = Literal["none", "left", "right"]
Calls = Literal["whole", "chunks", "prefix"]


@dataclass(frozen=True)
class Scenario:
    """One line of the table."""

    cache: Cache
    padding: Padding
    calls: Calls  # what the prompt is fed in

    @property
    def cuts(self) -> tuple[int, ...]:
        """Ends of the calls: the prompt, then single tokens where there is a cache to decode by."""
        ends = {"whole": (420,), "chunks": (170, 357, 420), "prefix": (356, 420)}[self.calls]
        if self.cache == "none" or self.padding == "right":
            return ends
        return (*ends, *range(PROMPT + 1, PROMPT + DECODED + 1))

    def __str__(self) -> str:
        return f"{self.cache}-{self.padding}-{self.calls}"


SCENARIOS = [
    Scenario(cache, padding, calls)
    for cache in get_args(Cache)
    for calls in get_args(Calls)
    for padding in get_args(Padding)
    if (cache != "none" or calls == "whole")
    and (cache != "full" or (calls, padding) == ("chunks", "left"))
    and (padding != "right" or (cache != "static" and calls == "whole"))
]
# First and last token of each row. One row begins within the last call, one has few tokens.
ROWS = {
    "none": ((0, 423),),
    "left": ((0, 423), (67, 423), (400, 423)),
    "right": ((0, 420), (5, 290), (0, 9)),
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(FIRST_WORD, VOCABULARY, (batch, length), generator=generator)


def attended(padding: str) -> Tensor:
    """int64 [rows, length]: 1 for tokens, 0 for padding."""
    rows = ROWS[padding]
    mask = torch.zeros(len(rows), rows[0][1], dtype=torch.long)
    for row, (begin, end) in enumerate(rows):
        mask[row, begin:end] = 1
    return mask


def for_heads(model: Any, patterns: list[list[HeadPattern]]) -> list[list[HeadPattern]]:
    heads = model.config.num_attention_heads
    return [[layer[head % len(layer)] for head in range(heads)] for layer in patterns]


def feed(model: Any, scenario: Scenario, whole: int | None = None) -> Tensor:
    """Logits of the prompt and, where there is a cache, of the tokens decoded behind it.

    Args:
        whole: feed this many tokens in one call.
    """
    mask = attended(scenario.padding)
    ids = tokens(*mask.shape)
    cache: Any = None
    if scenario.cache == "static":
        length = PROMPT + DECODED + FREE_SLOTS
        cache = StaticCache(config=model.config, max_cache_len=length)
    elif scenario.cache == "full":
        cache = DynamicCache()  # it knows of windows from a config only
    logits, begin = [], 0
    for end in scenario.cuts if whole is None else (whole,):
        output = model(
            input_ids=ids[:, begin:end],
            attention_mask=None if scenario.padding == "none" else mask[:, :end],
            past_key_values=cache,
            use_cache=scenario.cache != "none",
        )
        logits.append(output.logits)
        cache, begin = output.past_key_values, end
        if scenario.calls == "prefix" and scenario.cache == "dynamic":
            cache = copy.deepcopy(cache)  # as one that keeps the prefix does
    return torch.cat(logits, dim=1)


# ---- Eager attention under the masks of patterns -------------------------------------------------


_KINDS = {
    "dense": reference.Dense,
    "a_shape": reference.AShape,
    "tri_shape": reference.TriShape,
    "vertical_slash": reference.VerticalSlash,
    "block_sparse": reference.BlockSparse,
}


class Oracle:
    """Eager attention with every head's pattern in its mask.

    The pattern of a call is found by brute force from its own query and key. A second model replays
    the masks of a first one, so that a float64 model tells the error of a float32 one even where
    an estimate is close.
    """

    def __init__(self, patterns: list[list[HeadPattern]]) -> None:
        self.patterns = patterns
        self.masks: list[Tensor] = []  # one per call of a layer: bool [B, H, q_len, kv_len]
        self.left_out = torch.zeros(LAYERS, len(patterns[0]), dtype=torch.long)  # pairs
        self.smallest_gap = math.inf
        self.replayed: Iterator[Tensor] | None = None
        # Of this call, by window: a model with two kinds of layers makes both masks beforehand.
        self._places: dict[int | None, tuple[int, int, Tensor | None]] = {}

    def use_in(self, model: Any, replay: bool = False) -> None:
        AttentionInterface.register("oracle", self.attention)
        AttentionMaskInterface.register("oracle", self.mask)
        model.set_attn_implementation("oracle")
        self.replayed = iter(self.masks) if replay else None

    def mask(
        self,
        *,
        kv_offset: int = 0,
        attention_mask: Tensor | None = None,
        local_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if "cache_position" in kwargs:  # Transformers up to 5.3
            q_offset = int(kwargs["cache_position"][0])
        else:
            q_offset = int(kwargs["q_offset"])
        self._places[local_size] = (q_offset, kv_offset, attention_mask)
        return eager_mask(
            kv_offset=kv_offset, attention_mask=attention_mask, local_size=local_size, **kwargs
        )

    def attention(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        if self.replayed is not None:
            pairs = next(self.replayed)
        else:
            pairs = self._pairs(module.layer_idx, query, key, scaling, sliding_window)
            self.masks.append(pairs)
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        scores = scores.masked_fill(~pairs, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return (weights @ value).transpose(1, 2).contiguous(), None

    def _pairs(
        self, layer: int, query: Tensor, key: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """What the patterns of one call leave, [B, H, q_len, kv_len]; True for rows of padding."""
        batch, heads, q_len, _ = query.shape
        kv_len, group = key.shape[2], heads // key.shape[1]
        q_offset, kv_offset, padding = self._places[window]
        pairs = torch.ones(batch, heads, q_len, kv_len, dtype=torch.bool)
        if q_len < MIN_QUERIES or (window is not None and window < kv_len):
            return pairs
        for row in range(batch):
            end = q_offset + q_len - kv_offset  # free slots of a static cache lie behind
            begin = 0
            if padding is not None:
                tokens_in_slots = padding[row, kv_offset : kv_offset + end].nonzero()[:, 0].tolist()
                if not tokens_in_slots:
                    continue
                begin, end = tokens_in_slots[0], tokens_in_slots[-1] + 1
            first_query = max(begin + kv_offset - q_offset, 0)
            queries, keys = slice(first_query, end + kv_offset - q_offset), slice(begin, end)
            for head in range(heads):
                pattern = self.patterns[layer][head]
                of_head, gap = reference.head_mask(
                    _KINDS[pattern.kind](*pattern.sizes),
                    query[row, head, queries],
                    key[row, head // group, keys],
                    scaling,
                )
                pairs[row, head, queries, keys] = of_head
                causal = reference.dense_mask(*of_head.shape)
                self.left_out[layer, head] += (causal & ~of_head).sum()
                self.smallest_gap = min(self.smallest_gap, gap)
        return pairs


# ---- The table -----------------------------------------------------------------------------------

TABLE: dict[tuple[str, str, str], str] = {}  # [patterns, scenario, family]


class _Printer:
    """Writes the table behind pytest's own summaries, whatever is captured."""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section(
            f'"minference" in Transformers {transformers.__version__}: '
            "largest error, in roundings of the largest logit and times that of eager"
        )
        for patterns in dict.fromkeys(key[0] for key in TABLE):
            columns = list(dict.fromkeys(key[2] for key in TABLE if key[0] == patterns))
            lines = list(dict.fromkeys(key[1] for key in TABLE if key[0] == patterns))
            terminalreporter.write_line(
                f"{patterns + ' patterns':24}" + "".join(f"{name:>13}" for name in columns)
            )
            for line in lines:
                cells = [TABLE.get((patterns, line, name), "") for name in columns]
                terminalreporter.write_line(f"  {line:22}" + "".join(f"{c:>13}" for c in cells))


@pytest.fixture(scope="module", autouse=True)
def _print_table(request: pytest.FixtureRequest) -> Iterator[None]:
    TABLE.clear()
    request.config.pluginmanager.register(_Printer())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # in models this small threads mostly wait for each other
    yield
    torch.set_num_threads(threads)


@functools.cache
def models(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model, and the same weights in float64."""
    return build(BY_NAME[name], dtype=dtype), build(BY_NAME[name], dtype=dtype).double()


@functools.cache
def dense_truth(name: str, padding: Padding, dtype: torch.dtype) -> Tensor:
    """Logits of eager attention in float64, in one call without a cache."""
    _, exact = models(name, dtype)
    exact.set_attn_implementation("eager")
    with float64_throughout(exact):
        return feed(exact, Scenario("none", padding, "whole"), attended(padding).shape[1])


class Expected(NamedTuple):
    """Logits with a dynamic cache; the same as with any other."""

    truth: Tensor
    eager: Tensor  # in the type of the model that is measured
    left_out: Tensor  #: [layers, heads], pairs that the patterns take from causal attention


@functools.cache
def expected(name: str, padding: Padding, calls: Calls, label: str, dtype: torch.dtype) -> Expected:
    model, exact = models(name, dtype)
    scenario = Scenario("dynamic", padding, calls)
    oracle = Oracle(for_heads(model, PATTERNS[label]))
    if label == "dense":
        model.set_attn_implementation("eager")
        eager = feed(model, scenario)
        return Expected(dense_truth(name, padding, dtype), eager, oracle.left_out)
    oracle.use_in(model)
    eager = feed(model, scenario)
    assert oracle.smallest_gap > MIN_GAP, "a selection is too close; change the seed of tokens()"
    oracle.use_in(exact, replay=True)
    with float64_throughout(exact):
        return Expected(feed(exact, scenario), eager, oracle.left_out)


def compare(
    family: Family, scenario: Scenario, label: str, dtype: torch.dtype = torch.float32
) -> None:
    length = scenario.cuts[-1]
    is_token = attended(scenario.padding)[:, :length].bool()

    def difference(a: Tensor, b: Tensor) -> float:
        return float((a[:, :length] - b[:, :length]).abs()[is_token].max())

    truth, eager, left_out = expected(family.name, scenario.padding, scenario.calls, label, dtype)
    eager_error = difference(eager, truth)
    largest = float(truth[:, :length][is_token].abs().max())
    rounding = torch.finfo(dtype).eps
    bound = TIMES_EAGER * eager_error + ROUNDINGS * rounding * largest

    model, _ = models(family.name, dtype)
    integration.configure(model, for_heads(model, PATTERNS[label]), dense_fallback=False)
    where = (f"{label} {str(dtype).removeprefix('torch.')}", str(scenario), family.name)
    TABLE[where] = "raised"
    found = feed(model, scenario)
    error = difference(found, truth)
    TABLE[where] = f"{error / largest / rounding:.1f} {error / eager_error:.1f}x"
    if not error <= bound:
        TABLE[where] += " !"
    assert found.isfinite().all()  # at padding, too
    assert error <= bound, f"eager's error is {eager_error}, the largest logit {largest}"

    # A comparison that no pattern could fail would prove nothing.
    for layer, pattern in enumerate(PATTERNS[label]):
        if layer not in family.layers_with_window:
            has_effect = torch.tensor([head.kind != "dense" for head in pattern])
            assert torch.equal(left_out[layer, : len(pattern)] > 0, has_effect)
    # In layers with a window a pattern has an effect while that is not shorter than the keys.
    first_call_has_pattern = (family.window or PROMPT) >= scenario.cuts[0]
    if label != "dense" and family.all_layers_have_windows:
        assert bool(left_out.any()) == first_call_has_pattern
    if left_out.any():
        dense = dense_truth(family.name, scenario.padding, dtype)
        assert difference(truth, dense) > (100 if dtype == torch.float32 else 3) * bound


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_dense_patterns_equal_eager(family: Family, scenario: Scenario) -> None:
    compare(family, scenario, "dense")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_mixed_patterns_equal_eager_with_their_masks(family: Family, scenario: Scenario) -> None:
    compare(family, scenario, "mixed")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("patterns", ["dense", "fixed"])
def test_bfloat16(patterns: str, scenario: Scenario) -> None:
    compare(BY_NAME["llama"], scenario, patterns, torch.bfloat16)


# ---- What the table would show -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "head", "pattern"),
    [
        (0, 0, HeadPattern.a_shape(9, 41)),
        (0, 0, HeadPattern.a_shape(10, 40)),
        (0, 1, HeadPattern.vertical_slash(61, 102)),
        (0, 1, HeadPattern.vertical_slash(60, 103)),
        (0, 2, HeadPattern.a_shape(1, 418)),
        (0, 3, HeadPattern.tri_shape(0, 64, 21)),
        (1, 1, HeadPattern.block_sparse(3)),
        (1, 2, HeadPattern.a_shape(0, 2)),
    ],
    ids=lambda value: str(value),
)
def test_one_more_pair_or_line_would_show(layer: int, head: int, pattern: HeadPattern) -> None:
    model, _ = models("llama", torch.float32)
    truth, eager, _ = expected("llama", "none", "whole", "mixed", torch.float32)
    patterns = for_heads(model, PATTERNS["mixed"])
    patterns[layer][head] = pattern
    integration.configure(model, patterns, dense_fallback=False)
    found = feed(model, Scenario("dynamic", "none", "whole"))
    assert (found - truth).abs().max() > 20 * (eager - truth).abs().max()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.window], ids=str)
def test_one_more_key_in_the_window_would_show(family: Family) -> None:
    truth = dense_truth(family.name, "none", torch.float32)
    eager = expected(family.name, "none", "whole", "dense", torch.float32).eager
    wider = build(family, sliding_window=(family.window or 0) + 1)
    found = feed(wider, Scenario("dynamic", "none", "whole"))
    assert (found - truth).abs().max() > 20 * (eager - truth).abs().max()


# ---- generate ------------------------------------------------------------------------------------

# Several times what the table shows, of logits up to 10.
CLOSE = 5e-4


def generate(model: Any, batch: int = 3, **options: Any) -> tuple[Tensor, Tensor]:
    """Sequences, and the logits [steps, rows, vocabulary] they were taken from."""
    mask = attended("left")[:batch, :PROMPT]
    settings = {
        "attention_mask": mask,
        "max_new_tokens": 6,
        # Neither an early end nor padding, which generate() infers a mask from.
        "suppress_tokens": list(range(FIRST_WORD)),
        "do_sample": False,
        "disable_compile": True,
        "return_dict_in_generate": True,
        "output_logits": True,
        **options,
    }
    found = model.generate(tokens(*mask.shape), **settings)
    return found.sequences, torch.stack(found.logits)


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() < CLOSE


CHUNKS = [
    None,
    pytest.param(
        130,
        marks=pytest.mark.skipif(VERSION == (5, 0), reason="Transformers 5.0 loses the position"),
    ),
]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_generate_with_dense_patterns_equals_eager(
    family: Family, cache: str | None, chunk: int | None
) -> None:
    model, _ = models(family.name, torch.float32)
    options: dict[str, Any] = {"cache_implementation": cache, "prefill_chunk_size": chunk}
    model.set_attn_implementation("eager")
    expected = generate(model, **options)
    integration.configure(model, HeadPattern.dense(), dense_fallback=False)
    assert_same(generate(model, **options), expected)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3"])
def test_generate_with_mixed_patterns_equals_eager_with_their_masks(
    name: str, cache: str | None, chunk: int | None
) -> None:
    model, _ = models(name, torch.float32)
    options: dict[str, Any] = {"cache_implementation": cache, "prefill_chunk_size": chunk}
    oracle = Oracle(for_heads(model, PATTERNS["mixed"]))
    oracle.use_in(model)
    expected = generate(model, **options)
    assert oracle.smallest_gap > MIN_GAP
    integration.configure(model, for_heads(model, PATTERNS["mixed"]), dense_fallback=False)
    assert_same(generate(model, **options), expected)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3"])
def test_beam_search_equals_eager(name: str) -> None:
    """Caches are reordered between the steps."""
    model, _ = models(name, torch.float32)
    model.set_attn_implementation("eager")
    expected = generate(model, num_beams=3)
    integration.configure(model, HeadPattern.dense(), dense_fallback=False)
    assert_same(generate(model, num_beams=3), expected)


@pytest.mark.parametrize("by", ["assistant_model", "prompt_lookup_num_tokens"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_assisted_generation_equals_greedy(name: str, by: str) -> None:
    """Several tokens are checked per call, and caches are cut back.

    Patterns are dense: the first call holds the prompt and the candidates, which under a sparse
    pattern is another prompt.
    """
    if VERSION == (5, 0) and BY_NAME[name].window is not None:
        pytest.skip("Transformers 5.0 cannot cut back the cache of a window")
    model, _ = models(name, torch.float32)
    integration.configure(model, HeadPattern.dense(), dense_fallback=False)
    expected, _ = generate(model, batch=1)
    assistant: Any = 3
    if by == "assistant_model":
        assistant = build(BY_NAME["glm"])
        integration.configure(assistant, HeadPattern.dense())
    found, _ = generate(model, batch=1, **{by: assistant})
    # Transformers up to 5.8 may write a token too many.
    assert torch.equal(found[:, : expected.shape[1]], expected)


def test_pipeline_equals_eager() -> None:
    """Prompts of different lengths, which a tokenizer pads on the left."""
    words = ["<pad>", "<s>", "</s>", *(f"w{word}" for word in range(FIRST_WORD, VOCABULARY))]
    splitter = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, "<pad>")
    )
    splitter.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=splitter, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )
    prompts = [" ".join(words[int(token)] for token in tokens(1, n)[0]) for n in (290, 80, 420)]

    def texts(model: Any) -> list[str]:
        write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        results = write(prompts, batch_size=3, max_new_tokens=5, do_sample=False)
        return [result[0]["generated_text"] for result in results]

    for name in ("llama", "gemma3"):
        model = build(BY_NAME[name])
        expected = texts(model)
        assert len({text.split()[-5:][0] for text in expected}) > 1
        integration.configure(model, HeadPattern.dense(), dense_fallback=False)
        assert texts(model) == expected


# ---- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("argument", REFUSED)
def test_other_attention_is_refused_by_name(argument: str) -> None:
    model = build(REFUSED[argument], "minference")
    with pytest.raises(NotImplementedError, match=rf"^{argument} is .*minference"):
        model(tokens(1, 100))
