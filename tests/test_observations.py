"""Observations of attention: probabilities and columns against eager attention and float64, pairs
that are attended against the oracle, and that no matrix of queries by keys is held."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, estimate_vs_index
from minference_ext.benchmark.inputs import Shape, prompt_like
from minference_ext.methods import Layer, LayerIndex, parse
from minference_ext.models import LoadedModel, load_model
from minference_ext.observations import observe, observed_maps
from minference_ext.observations.attended import AttendedPairs, has_index, strip_width
from minference_ext.observations.measure import column_counts, covered, entry_distances
from minference_ext.observations.prefill import watch_layers
from minference_ext.observations.prompts import prompts
from minference_ext.observations.strips import WIDTH, column_mass, rows, strips
from minference_ext.testing.model import SEP_TOKEN
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import reference, text_model
from .tiny_llama import HEADS, KV_HEADS, LAYERS, tiny, tokens

LENGTHS = [65, 700, 1000]  # one key more than a row block, not a multiple of it, several strips


def inputs(
    length: int, heads: int = 1, dtype: torch.dtype = torch.float32, head_dim: int = 64
) -> Layer:
    """A layer with lines, one kv head, in which no estimation takes everything."""
    shape = Shape(num_heads_q=heads, num_heads_kv=1, head_dim=head_dim)
    q, k, v = prompt_like(shape, length, dtype, seed=length)
    return Layer(q, k, v)


def scores(layer: Layer) -> Tensor:
    """float64 [length, length] of the first head, the definition; -inf above the diagonal."""
    q, k = layer.q[0, 0].double(), layer.k[0, 0].double()
    products = q @ k.T * layer.scale
    return products.masked_fill(reference.offsets(len(q), len(k)) < 0, -math.inf)


# ---- Strips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strips_are_dense_attention(length: int, dtype: torch.dtype) -> None:
    layer = inputs(length, dtype=dtype)
    expected, lse = scores(layer).softmax(-1), scores(layer).logsumexp(-1).float()
    found = torch.zeros_like(expected)
    q, k = layer.q[0, 0], layer.k[0, 0]
    ends = []
    for first, part in strips(q, k, lse, layer.scale, width=130):
        assert part.shape == (length - first, min(130, length - first))
        found[first:, first : first + part.shape[1]] = part.double()
        ends.append(first + part.shape[1])
    assert ends[-1] == length
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    mass = column_mass(q, k, lse, layer.scale)
    torch.testing.assert_close(mass, expected.mean(0), atol=1e-7, rtol=1e-5)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-5)


def test_strips_survive_scores_beyond_the_range_of_exp() -> None:
    """What lies above the diagonal may exceed the lse of its query by any amount."""
    q = torch.tensor([[1.0], [1.0]])
    k = torch.tensor([[0.0], [1000.0]])
    ((_, part),) = strips(q, k, torch.tensor([0.0, 1000.0]), 1.0)
    assert part.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_rows_are_dense_attention() -> None:
    layer = inputs(300)
    queries = torch.tensor([0, 7, 299])
    found = rows(layer.q[0, 0], layer.k[0, 0], layer.scale, queries)
    expected = scores(layer).softmax(-1)[queries]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-4)


# ---- Numbers of heads ----------------------------------------------------------------------------


def test_covered() -> None:
    mass = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
    assert covered(mass, mass, [1, 2, 4]) == pytest.approx([0.4, 0.7, 1.0])
    other = torch.tensor([0.9, 0.0, 0.1, 0.0], dtype=torch.float64)
    assert covered(mass, other, [1, 2, 3]) == pytest.approx([0.1, 0.3, 0.7])  # ties: the lowest


def test_column_counts() -> None:
    assert column_counts(100) == [1, 2, 3, 4, 8, 16, 32, 64, 100]
    assert column_counts(64) == [1, 2, 4, 8, 16, 32, 64]
    assert 4096 in column_counts(5000)


@pytest.mark.parametrize("length", [1, 64, 1000])
def test_entry_distances(length: int) -> None:
    layer = inputs(length)
    expected = [0] * 32
    step = max(1, length // 64)
    for query in list(range(length - 1, -1, -step))[:64]:
        products = layer.q[0, 0, query].double() @ layer.k[0, 0, : query + 1].double().T
        row = torch.softmax(products * layer.scale, dim=0)
        entries = [key for key in range(query + 1) if row[key] > 1 / (query + 1)]
        for left, right in itertools.pairwise(entries):
            expected[min(right - left, 32) - 1] += 1
    assert entry_distances(layer.q[0, 0], layer.k[0, 0], layer.scale) == expected
    assert length == 1 or sum(expected) > 0


# ---- Attended pairs ------------------------------------------------------------------------------

_VERTICAL, _SLASH = (3, 40, 41, 300, 999, -1), (0, 1, 130, 131, 700, -1)


@dataclass(frozen=True)
class Attended:
    """An index of one head, and the oracle's pattern for it."""

    index: LayerIndex
    pattern: reference.Pattern
    reason: str
    estimate_every: int = 0


def lists(values: Sequence[int]) -> Tensor:
    return torch.tensor([[values]], dtype=torch.int32)


def lines(mode: Any) -> Attended:
    index = LayerIndex(
        (HeadPattern.vertical_slash_index(),),
        vertical_idx=lists(_VERTICAL),
        slash_idx=lists(_SLASH),
        mode=mode,
    )
    return Attended(index, reference.Lines(_VERTICAL, _SLASH), f"lists, {mode}")


def pattern(head: HeadPattern, oracle: reference.Pattern, **options: Any) -> Attended:
    every = options.get("estimate_every", 0)
    return Attended(LayerIndex((head,), **options), oracle, f"{head} {options}", every)


_BLOCKS = ((0,), (0, 1), (2, 1, -1), (0, 3), (4, -1))
ATTENDED = [
    pattern(HeadPattern.dense(), reference.Dense()),
    pattern(HeadPattern.a_shape(70, 130), reference.AShape(70, 130)),
    pattern(HeadPattern.a_shape(0, 1), reference.AShape(0, 1)),
    pattern(HeadPattern.tri_shape(3, 65, 40), reference.TriShape(3, 65, 40)),
    pattern(HeadPattern.block_sparse(3), reference.BlockSparse(3)),
    pattern(HeadPattern.vertical_slash(40, 110), reference.VerticalSlash(40, 110)),
    pattern(
        HeadPattern.vertical_slash(40, 110),
        reference.VerticalSlash(40, 110),
        mode="exact",
        dense_fallback=False,
    ),
    pattern(
        HeadPattern.vertical_slash(30, 100),
        reference.VerticalSlash(30, 100),
        estimate_every=256,
        dense_fallback=False,
    ),
    lines("cover"),
    lines("exact"),
    lines("reference"),
    Attended(
        LayerIndex(
            (HeadPattern.block_index(),),
            block_idx=torch.tensor(
                [[[[*_BLOCKS[m % 5], -1, -1][:3] for m in range(16)]]], dtype=torch.int32
            ),
        ),
        reference.Blocks(_BLOCKS),
        "blocks, some rows without a key",
    ),
]


def expected_pairs(case: Attended, layer: Layer) -> Tensor:
    q, k = layer.q[0, 0], layer.k[0, 0]
    every = case.estimate_every or len(q)
    parts = []
    for first in range(0, len(q), every):
        end = min(first + every, len(q))
        mask, gap = reference.head_mask(
            case.pattern, q[first:end], k[:end], layer.scale, case.index.mode
        )
        assert gap > 1e-5  # no rounding decides which lines are taken
        parts.append(torch.nn.functional.pad(mask, (0, len(q) - end)))
    return torch.cat(parts)


@pytest.mark.parametrize("case", ATTENDED, ids=lambda case: case.reason)
@pytest.mark.parametrize("length", [1000, 1024])
def test_attended_pairs_are_the_oracle_s(case: Attended, length: int) -> None:
    layer = inputs(length)
    expected = expected_pairs(case, layer)
    pairs = AttendedPairs(layer, case.index, 0)
    for first, end in ((0, length), (0, 1), (63, 65), (130, 391), (length - 1, length)):
        assert torch.equal(pairs.strip(first, end), expected[first:, first:end])


def test_attended_pairs_of_chunks_that_are_dense() -> None:
    """Lists are cheaper for some chunks of the queries, and for others they are not."""
    layer = inputs(1024)
    index = parse("vertical_slash_per_chunk(60,64,256)").index(layer)
    mask = AttendedPairs(layer, index, 0).strip(0, 1024)
    whole = reference.dense_mask(1024, 1024)
    is_dense = [torch.equal(a, b) for a, b in zip(mask.split(256), whole.split(256), strict=True)]
    assert is_dense[0]
    assert not all(is_dense)
    for first, end in ((0, 1), (300, 301), (200, 513), (1000, 1024)):
        strip = AttendedPairs(layer, index, 0).strip(first, end)
        assert torch.equal(strip, mask[first:, first:end])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attended_pairs_in_short_types(dtype: torch.dtype, head_dim: int) -> None:
    """Fewer keys go into an element of the output there."""
    layer = inputs(1000, dtype=dtype, head_dim=head_dim)
    for case in (lines("exact"), pattern(HeadPattern.a_shape(70, 130), reference.AShape(70, 130))):
        expected = expected_pairs(case, layer)
        assert torch.equal(AttendedPairs(layer, case.index, 0).strip(0, 1000), expected)
        strip = AttendedPairs(layer, case.index, 0).strip(100, 1000)
        assert torch.equal(strip, expected[100:, 100:])


def test_attended_pairs_of_a_head_among_others() -> None:
    """Two query heads on one kv head, each with its own pattern and lists."""
    layer = inputs(700, heads=2)
    vertical, slash = estimate_vs_index(layer.q, layer.k, 40, 110)
    index = LayerIndex(
        (HeadPattern.a_shape(10, 20), HeadPattern.vertical_slash_index()),
        vertical_idx=vertical,
        slash_idx=slash,
    )
    first = AttendedPairs(layer, index, 0).strip(0, 700)
    assert torch.equal(first, reference.a_shape_mask(700, 700, 10, 20))
    second = AttendedPairs(layer, index, 1).strip(0, 700)
    expected = reference.vertical_slash_mask(
        700, 700, vertical[0, 1].tolist(), slash[0, 1].tolist()
    )
    assert torch.equal(second, expected)


@pytest.mark.parametrize(
    "text",
    [
        "vertical_slash(1000,6096)",  # dense: cheaper
        "vertical_slash(30,64)",
        "vertical_slash_per_chunk(30,64,256)",
        "tri_shape(8,64,100)",
        "block_sparse(4)",
        "triangle_mix(1,8,64,64)",
        "only_vertical(64)",
        "static(40,64)",
        "streaming_llm_dilated(16,256,2)",
        "streaming_llm_strided(16,64,256,2)",
        "flexprefill(0.5)",
        "xattention(8,0.5)",
        "top_k(3)",
    ],
)
def test_as_many_pairs_as_the_plan_counts(text: str) -> None:
    """Counted by the plan, which knows nothing of values."""
    method, layer = parse(text), inputs(1000, heads=2)
    stats = method.stats(layer)
    for head in range(2):
        pairs = AttendedPairs(layer, method.index(layer), head)
        assert int(pairs.strip(0, 1000).sum()) == int(stats.attended_pairs[0, head])


def test_strip_width() -> None:
    assert [strip_width(cell, 512) for cell in (1, 7, 500, 513)] == [512, 518, 1000, 513]


# ---- Models --------------------------------------------------------------------------------------


def eager(model: Any, ids: Tensor) -> list[Tensor]:
    """Attention of each layer as Transformers computes it, float64 [heads, length, length]."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(ids, output_attentions=True)
    model.set_attn_implementation("sdpa")
    return [layer[0].double() for layer in out.attentions]


def test_layers_are_those_of_the_model() -> None:
    model, ids = tiny("sdpa"), tokens(1, 200)
    expected = eager(model, ids)
    seen = []

    def watch(layer: Layer, lse: Tensor) -> None:
        assert layer.rotation is None
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            mass = column_mass(layer.q[0, head], layer.k[0, kv_head], lse[0, head], layer.scale)
            wanted = expected[layer.layer_idx][head].mean(0)
            torch.testing.assert_close(mass, wanted, atol=1e-7, rtol=1e-4)
            seen.append((layer.layer_idx, head))

    assert watch_layers(model, ids, watch) == [0, 1]
    assert seen == [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def test_a_model_whose_rotation_cannot_be_undone() -> None:
    """It can be watched, but not by a method that needs the rotation."""
    from transformers import GPT2Config, GPT2LMHeadModel  # has none

    config = GPT2Config(
        vocab_size=97, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model: Any = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa").eval()
    assert watch_layers(model, tokens(1, 100), lambda *_: None) == [0]
    with pytest.raises(ValueError, match="infllm turns queries and keys back"):
        observed_maps(model, tokens(1, 100), 0, {0: parse("infllm")}, cells=16, num_last=1)
    assert model.config._attn_implementation == "sdpa"


def test_rotation_is_there_where_it_is_needed() -> None:
    rotations = []

    def watch(layer: Layer, lse: Tensor) -> None:
        rotations.append(layer.rotation)

    model = tiny("sdpa")
    watch_layers(model, tokens(1, 100), watch, rotation_for=parse("infllm"))
    assert all(rotation is not None and rotation.cos.shape == (100, 32) for rotation in rotations)
    for layer in model.model.layers:
        assert not layer.self_attn._forward_hooks
        assert not layer.self_attn._forward_pre_hooks


def test_a_prefill_leaves_the_model_as_it_was() -> None:
    model, ids = tiny("sdpa"), tokens(1, 100)
    before = model(ids).logits
    seen: list[int] = []
    hidden = []
    hook = model.model.layers[1].register_forward_hook(lambda *_: hidden.append(1))
    assert watch_layers(model, ids, lambda layer, _: seen.append(layer.layer_idx), last_layer=0)
    assert (seen, hidden) == ([0], [])  # the rest is not computed
    hook.remove()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)

    def fail(layer: Layer, lse: Tensor) -> None:
        raise RuntimeError("a watcher's own")

    with pytest.raises(RuntimeError, match="a watcher's own"):
        watch_layers(model, ids, fail)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, before)


def test_a_vision_part_keeps_its_attention() -> None:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config: Any = LlavaConfig(vision_config=vision, text_config=tiny().config)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    assert watch_layers(model, tokens(1, 100), lambda *_: None) == [0, 1]
    assert config.vision_config._attn_implementation == "eager"
    assert config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("shape", [(1, 63), (2, 100)])
def test_prompts_that_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"it must be \[1, length\] with at least 64 tokens"):
        watch_layers(tiny("sdpa"), tokens(*shape), lambda *_: None)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1)])
def test_observations_are_those_of_eager_attention(heads: int, kv_heads: int) -> None:
    length = 300
    model = tiny("sdpa", num_attention_heads=heads, num_key_value_heads=kv_heads)
    ids = tokens(2, length)
    attentions = [eager(model, prompt[None]) for prompt in ids]
    words: list[str] = []
    found = observe(model, ids[:1], ids[1:], done=words.append)
    assert words == [f"{name}: layer {i}" for name in ("other prompt", "prompt") for i in (0, 1)]
    assert [(head.layer, head.head) for head in found] == [
        (layer, head) for layer in range(LAYERS) for head in range(heads)
    ]
    columns = column_counts(length)
    assert columns == [1, 2, 4, 8, 9, 16, 32, 64, 128, 256, 300]
    losses = []
    for head in found:
        own, other = (of[head.layer][head.head].sum(0) / length for of in attentions)
        for place, count in enumerate(columns):
            best = float(own.topk(count).values.sum())
            again = float(own[other.topk(count).indices].sum())
            assert head.coverage[place] == pytest.approx(best, rel=1e-4)
            assert head.reused[place] == pytest.approx(again, rel=1e-4)
            losses.append(best - again)
        assert sum(head.distances) > 0
    assert max(losses) > 0.01  # so that the two can be told apart


def test_prompts_of_two_lengths_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"other has shape \(1, 65\)"):
        observe(tiny("sdpa"), tokens(1, 64), tokens(1, 65))


def windowed() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=80,
    )
    return MistralForCausalLM._from_config(config, attn_implementation="sdpa").eval()


def test_layers_with_a_window_are_left_out() -> None:
    model = windowed()
    assert watch_layers(model, tokens(1, 100), lambda *_: None) == []
    assert watch_layers(model, tokens(1, 80), lambda *_: None) == [0, 1]  # it holds the prompt
    with pytest.raises(ValueError, match="all of its layers have sliding windows"):
        observe(model, tokens(1, 100), tokens(1, 100))
    with pytest.raises(ValueError, match="layer 1 attends a sliding window"):
        observed_maps(model, tokens(1, 100), 1, {0: parse("dense")}, cells=16, num_last=1)


def test_maps_are_those_of_eager_attention() -> None:
    """Two sparse methods, GQA, and a length that is a multiple of nothing."""
    length = 333
    model, ids = tiny("sdpa"), tokens(1, length)
    expected = eager(model, ids)[1]
    methods = {3: parse("a_shape(16,40)"), 0: parse("a_shape(5,60)")}
    maps = observed_maps(model, ids, 1, methods, cells=50, num_last=9, roles=["a_b"] * 4)
    assert [(head.layer, head.head, head.role) for head in maps] == [(1, 3, "a b"), (1, 0, "a b")]
    assert [head.pattern for head in maps] == ["a_shape(16,40)", "a_shape(5,60)"]
    for head, (sink, window) in zip(maps, ((16, 40), (5, 60)), strict=True):
        mask = reference.a_shape_mask(length, length, sink, window)
        assert head.cell == 7
        probability = expected[head.head]
        kept = probability * mask
        assert head.recall == pytest.approx(float(kept.sum()) / length, rel=1e-4)
        assert head.recall_last == pytest.approx(float(kept[-9:].sum()) / 9, rel=1e-4)
        assert head.attended_share == pytest.approx(int(mask.sum()) / (length * (length + 1) / 2))
        row, column = 40, 3
        cell = (slice(7 * row, 7 * row + 7), slice(7 * column, 7 * column + 7))
        missed = (probability * ~mask)[cell].max()
        assert float(missed) > 0
        assert float(head.missed[row, column]) == pytest.approx(float(missed), rel=1e-4)
        assert float(head.kept[-1, -1]) == pytest.approx(float(kept[329:, 329:].max()), rel=1e-4)


def test_a_method_of_its_own_way_leaves_pairs_open() -> None:
    method = parse("infllm(64,64,2)")
    assert not has_index(method)
    model, ids = tiny("sdpa"), tokens(1, 200)
    (head,) = observed_maps(model, ids, 0, {1: method}, cells=32, num_last=1)
    assert (head.attended_share, head.pattern) == (None, "attention alone")
    largest = eager(model, ids)[0][1].max()
    assert float(head.kept.max()) == pytest.approx(float(largest), rel=1e-4)
    assert not head.missed.any()


class _Largest(TorchDispatchMode):
    """The most elements, and the most bytes, of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


def test_no_matrix_of_queries_by_keys() -> None:
    """A strip has a quarter of it at this length, and no more at any."""
    length = 4 * WIDTH
    model = tiny("sdpa", num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    with _Largest() as largest:
        observe(model, tokens(1, length), tokens(1, length))
        methods = {1: parse("a_shape(4,64)"), 0: parse("dense")}
        observed_maps(model, tokens(1, length), 0, methods, cells=64, num_last=1)
    assert length * WIDTH <= largest.elements <= length * WIDTH * 1.1
    assert largest.bytes <= length * WIDTH * 4 * 1.1


# ---- Prompts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model.save(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def loaded(text_folder: Path) -> LoadedModel:
    return load_model(str(text_folder))


def test_generated_prompts(loaded: LoadedModel) -> None:
    first, second = prompts(loaded, 500, 2, seed=3)
    assert first.input_ids.shape == second.input_ids.shape == (1, 500)
    assert not torch.equal(first.input_ids, second.input_ids)
    assert first.num_last == 64
    assert first.last == "last 64 queries"
    (again,) = prompts(loaded, 500, 1, seed=4)
    assert torch.equal(again.input_ids, second.input_ids)


def test_prompts_of_the_retrieval_model() -> None:
    retrieval = load_model("retrieval")
    first, second = prompts(retrieval, 200, 2)
    assert (first.num_last, first.last) == (20, "for questions")  # ten pairs of SEP and a key
    # What is asked for lies elsewhere in the other prompt: else it would seem to stay in place.
    asked = set(first.input_ids[0, -19::2].tolist())
    assert len(asked) == 10
    places = [
        [
            place
            for place, token in enumerate(prompt.input_ids[0, :-20].tolist())
            if token == SEP_TOKEN
        ]
        for prompt in (first, second)
    ]
    assert len(places[0]) == len(places[1]) == 10  # behind each value
    assert len(set(places[0]) & set(places[1])) < 3
    with pytest.raises(ValueError, match="length: found 40"):
        prompts(retrieval, 40, 1)


def test_parts_of_a_text(loaded: LoadedModel, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("grass grows on the hill. " * 100, encoding="utf-8")
    whole = loaded.tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    first, second = prompts(loaded, 100, 2, text)
    begin = loaded.tokenizer("")["input_ids"]
    body = 100 - len(begin)
    assert first.input_ids.tolist() == [begin + whole[:body]]
    assert second.input_ids.tolist() == [begin + whole[body : 2 * body]]
    assert (first.name, second.name) == ("text.txt, part 1", "text.txt, part 2")
    with pytest.raises(ValueError, match=r"2 prompts of 5000 tokens need \d+"):
        prompts(loaded, 5000, 2, text)


def test_texts_that_are_refused(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        prompts(loaded, 64, 1, path)
    with pytest.raises(FileNotFoundError):
        prompts(loaded, 64, 1, tmp_path / "missing")
    with pytest.raises(ValueError, match="retrieval has no tokenizer to read"):
        prompts(load_model("retrieval"), 64, 1, path)
    bare = LoadedModel("bare", loaded.model, None, None)
    with pytest.raises(ValueError, match="bare has no tokenizer"):
        prompts(bare, 64, 1)


def test_a_text_behind_the_token_that_begins_it(loaded: LoadedModel, tmp_path: Path) -> None:
    """The tokenizer here puts none; one that does is asked what it puts before nothing."""

    class Beginning:
        bos_token_id = 0

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [0, *map(ord, text)]}

    text = tmp_path / "text.txt"
    text.write_text("x" * 63 + "y" * 63, encoding="utf-8")
    begins = LoadedModel("begins", loaded.model, Beginning(), None)
    first, second = prompts(begins, 64, 2, text)
    assert first.input_ids.tolist() == [[0] + [ord("x")] * 63]
    assert second.input_ids.tolist() == [[0] + [ord("y")] * 63]
    with pytest.raises(ValueError, match="has 126 tokens; 2 prompts of 65 tokens need 128"):
        prompts(begins, 65, 2, text)
