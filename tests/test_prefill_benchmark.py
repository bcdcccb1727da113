"""Prefills of a model as minference_ext.benchmark measures them: who runs how often, what is
counted, where the time goes, and what is left on the model. No test asserts a time: clocks are the
tests' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from minference_ext import HeadPattern, estimate_vs_index, sparse_attention
from minference_ext.benchmark import breakdown, memory, prefill, published, timing
from minference_ext.benchmark.attention import SDPA
from minference_ext.benchmark.crossover import crossovers
from minference_ext.benchmark.prefill import Row
from minference_ext.benchmark.prompts import TEXT, prompt
from minference_ext.benchmark.random_models import SHAPES, random_model
from minference_ext.methods import Layer, LayerIndex, Method, parse_list
from minference_ext.models import LoadedModel
from minference_ext.patterns import PlanStats
from minference_ext.testing import RetrievalSpec
from minference_ext.transformers.temporary import attention_functions
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tests.tiny_llama import LAYERS, VOCABULARY, tiny, tokens

SPARSE = "vertical_slash(30,100)"


def prompts(length: int) -> Tensor:
    return tokens(1, length)


def measured(model: LlamaForCausalLM, methods: list[Method], *lengths: int, **options: Any) -> Any:
    """All rows, one round."""
    return [
        row
        for rows in prefill.measure(model, methods, lengths, prompts, rounds=1, **options)
        for row in rows
    ]


@dataclass(frozen=True, eq=False)
class Spy(Method):
    """Dense, and notes what is asked of it."""

    name: ClassVar[str] = "spy"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_rotation: ClassVar[bool] = True

    seen: list[str] = field(default_factory=list, repr=False)

    def index(self, layer: Layer) -> LayerIndex:
        assert layer.rotation is not None
        return LayerIndex((HeadPattern.dense(),) * layer.num_heads)

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        self.seen.append("attend")
        return super().attend(layer)

    def stats(self, layer: Layer) -> PlanStats:
        self.seen.append("stats")
        return super().stats(layer)

    def forget(self) -> None:
        self.seen.append("forget")


# ---- Measuring -----------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    """Each runs twice, then once per round, alone in all layers, and remembers no other length."""
    spy, num_sdpa = Spy(), 0
    begun: list[str] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_sdpa
        num_sdpa += 1
        return sdpa_attention_forward(*args, **kwargs)

    with attention_functions({"sdpa": counted}):
        rows = list(
            prefill.measure(tiny(), [spy], [70, 130], prompts, rounds=3, begin=begun.append)
        )
    assert [[(row.length, row.method) for row in of_length] for of_length in rows] == [
        [(70, SDPA), (70, "spy")],
        [(130, SDPA), (130, "spy")],
    ]
    assert begun[:10] == ["70 tokens", *["70 tokens, SDPA", "70 tokens, spy"] * 4, "130 tokens"]
    assert num_sdpa == 2 * (2 + 3) * LAYERS
    of_length = ["forget", *["stats", "attend"] * LAYERS, *["attend"] * (1 + 3) * LAYERS]
    assert spy.seen == of_length * 2
    for row in (row for of_length in rows for row in of_length):
        assert len(row.seconds) == 3
        assert row.breakdown is None


def test_what_is_computed() -> None:
    """Counted by hand: at least the pairs of the mask, at most those of its 64 x 64 tiles."""
    length, window = 300, 64
    rows = {row.method: row for row in measured(tiny(), parse_list("dense,a_shape(0,64)"), length)}
    assert rows[SDPA].computed_share == 1.0
    assert rows["dense"].computed_share >= 1.0
    causal = length * (length + 1) / 2
    attended = sum(min(query + 1, window) for query in range(length)) / causal
    tiles = sum(64 if block == 0 else 128 for block in range(5)) * 64 / causal
    assert attended < rows["a_shape(0,64)"].computed_share <= tiles


def test_too_short_for_a_prefill() -> None:
    with pytest.raises(ValueError, match="lengths has 63; a prefill has at least 64 tokens"):
        measured(tiny(), [], 63, 128)


def forward_of_mlps(model: LlamaForCausalLM) -> list[Callable[..., Any]]:
    return [layer.mlp.forward for layer in model.model.layers]


@pytest.mark.parametrize("ending", ["done", "closed", "failed"])
def test_the_model_is_as_it_was(ending: str) -> None:
    model, ids = tiny("eager"), prompts(100)
    expected, forwards = model(input_ids=ids).logits, forward_of_mlps(model)

    def prompt_or_failure(length: int) -> Tensor:
        if ending == "failed" and length > 64:
            raise RuntimeError("no more")
        return prompts(length)

    with prefill.chunked_mlps(model, 50) as is_chunked:
        assert is_chunked
        assert forward_of_mlps(model) != forwards
        measuring = prefill.measure(model, [Spy()], [64, 128], prompt_or_failure, rounds=1)
        assert len(next(measuring)) == 2
        if ending == "failed":
            with pytest.raises(RuntimeError, match="no more"):
                next(measuring)
        elif ending == "closed":
            measuring.close()
        else:
            assert len(list(measuring)) == 1
    assert model.config._attn_implementation == "eager"
    assert forward_of_mlps(model) == forwards
    for layer in model.model.layers:
        assert not layer.self_attn._forward_hooks
        assert not layer.self_attn._forward_pre_hooks
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_models_without_such_mlps_run_whole() -> None:
    model = tiny()
    for layer in model.model.layers:
        layer.mlp = torch.nn.Identity()
    with prefill.chunked_mlps(model, 64) as is_chunked:
        assert not is_chunked
    with prefill.chunked_mlps(tiny(), None) as is_chunked:
        assert not is_chunked


def test_turns_are_prepared_outside_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> Callable[..., None]:
        def run(*_: object) -> None:
            nonlocal now
            now += seconds

        return run

    monkeypatch.setattr("minference_ext.benchmark.timing.time.perf_counter", lambda: now)
    contenders = {"slow": spend(3.0), "fast": spend(1.0)}
    times = timing.in_turns(contenders, rounds=2, repeats={"slow": 1, "fast": 4}, prepare=spend(7))
    assert times.seconds == {"slow": [3.0, 3.0], "fast": [1.0, 1.0]}
    assert now == 2 * (3 + 4 * 1 + 2 * 7)
    assert timing.spread([5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]) == (2.0, 10.0)


# ---- Memory --------------------------------------------------------------------------------------

MIB = 1 << 20


def allocate(num_mib: int) -> None:
    torch.ones(num_mib * MIB // 4)


def test_peak_memory() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        pytest.skip(f"this system does not restart a process's peak: {error}")
    cpu = torch.device("cpu")
    allocate(200)  # a peak of before, and freed memory, that must not count
    few = memory.peak_increase(lambda: allocate(4), cpu)
    many = memory.peak_increase(lambda: allocate(100), cpu)
    assert few is not None
    assert many is not None
    assert few < 40 * MIB
    assert 95 * MIB < many < 150 * MIB


def test_peak_memory_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[int] = []
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "none")
    assert memory.peak_increase(lambda: ran.append(1), torch.device("cpu")) is None
    assert ran == [1]


# ---- Breakdown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["dense", SPARSE, "vertical_slash_per_chunk(30,100,128)"])
def test_breakdown_adds_up(text: str) -> None:
    rows = measured(tiny(), parse_list(text), 500, has_breakdown=True)
    for row in rows:
        parts = row.breakdown
        numbers = [parts.estimate, parts.plan, parts.attention, parts.rest]
        assert min(numbers) >= 0.0
        assert sum(numbers) == pytest.approx(row.median_seconds)
    assert (rows[0].breakdown.estimate, rows[0].breakdown.plan) == (0.0, 0.0)


class Time:
    """A clock of the test's own: it goes on where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def spend(self, seconds: float) -> None:
        self.now += seconds


TIME = Time()
ESTIMATE, PLAN, ATTENTION, REST = 5.0, 2.0, 10.0, 3.0  # of a layer


@dataclass(frozen=True)
class Slow(Method):
    """Estimates in Python."""

    name: ClassVar[str] = "slow"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def index(self, layer: Layer) -> LayerIndex:
        TIME.spend(ESTIMATE)
        return LayerIndex((HeadPattern.dense(),) * layer.num_heads)

    def stats(self, layer: Layer) -> PlanStats:
        stats = super().stats(layer)
        TIME.spend(PLAN)
        return stats


class Whole(Slow):
    """Attends on its own; the other parts are not asked for."""

    def attend(self, layer: Layer) -> tuple[Tensor, Tensor]:
        TIME.spend(ATTENTION)
        return torch.zeros_like(layer.q), layer.q.new_zeros(layer.q.shape[:3], dtype=torch.float32)

    def index(self, layer: Layer) -> LayerIndex:
        raise NotImplementedError


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """One whose layers take as long as the test says, by the test's clock."""

    def slow_attention(*args: Any, **kwargs: Any) -> Any:
        TIME.spend(PLAN + ATTENTION)
        return sparse_attention(*args, **kwargs)

    monkeypatch.setattr("minference_ext.methods.method.sparse_attention", slow_attention)
    monkeypatch.setattr("minference_ext.benchmark.breakdown.time.perf_counter", lambda: TIME.now)
    model = tiny("sdpa")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: TIME.spend(REST))
    return model


def parts_of(model: LlamaForCausalLM, method: Method | None, seconds: float) -> list[float]:
    def run() -> None:
        prefill.prefill(model, prompts(100))

    parts = breakdown.measure(model, method, run, seconds)
    return [parts.estimate, parts.plan, parts.attention, parts.rest]


def test_parts_of_a_breakdown(slow_model: LlamaForCausalLM) -> None:
    """What runs on its own is taken out again; the sum is the time that was measured without it."""
    per_layer = [ESTIMATE, PLAN, ATTENTION, REST]
    whole = LAYERS * sum(per_layer)
    expected = [LAYERS * seconds for seconds in per_layer]
    assert parts_of(slow_model, Slow(), whole) == pytest.approx(expected)
    halves = [seconds / 2 for seconds in expected]
    assert parts_of(slow_model, Slow(), whole / 2) == pytest.approx(halves)


def test_parts_of_a_method_that_attends_on_its_own(slow_model: LlamaForCausalLM) -> None:
    whole = LAYERS * (ATTENTION + REST)
    expected = [0.0, 0.0, LAYERS * ATTENTION, LAYERS * REST]
    assert parts_of(slow_model, Whole(), whole) == pytest.approx(expected)


def test_parts_of_sdpa(slow_model: LlamaForCausalLM) -> None:
    assert parts_of(slow_model, None, 7.0) == pytest.approx([0.0, 0.0, 0.0, 7.0])


@dataclass(frozen=True)
class Mixed(Method):
    """Heads 1 and 3 estimate lines, anew for every 128 queries."""

    may_be_dense: bool = False

    name: ClassVar[str] = "mixed"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def index(self, layer: Layer) -> LayerIndex:
        lines, more = HeadPattern.vertical_slash(30, 100), HeadPattern.vertical_slash(40, 200)
        heads = (HeadPattern.dense(), lines, HeadPattern.a_shape(8, 64), more)
        return LayerIndex(heads, estimate_every=128, dense_fallback=self.may_be_dense)


@pytest.mark.parametrize("may_be_dense", [False, True])
def test_what_is_estimated(monkeypatch: pytest.MonkeyPatch, may_be_dense: bool) -> None:
    """The lines that `sparse_attention` estimates, chunk by chunk; none where it would not."""
    calls: list[Any] = []

    def noted(q: Tensor, k: Tensor, vertical: Any, slash: Any, **options: Any) -> Any:
        calls.append((q.shape[1:3], k.shape[1:3], vertical, slash, options["softmax_scale"]))
        return estimate_vs_index(q, k, vertical, slash, **options)

    monkeypatch.setattr(breakdown, "estimate_vs_index", noted)
    assert sum(parts_of(tiny("sdpa"), Mixed(may_be_dense), 1.0)) == pytest.approx(1.0)
    assert calls == (
        [] if may_be_dense else [((2, 100), (2, 100), [30, 40], [100, 200], 32**-0.5)] * LAYERS
    )


def test_chunks_of_an_estimation(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    monkeypatch.setattr(
        breakdown,
        "estimate_vs_index",
        lambda q, k, *_, **__: shapes.append((q.shape[2], k.shape[2])),
    )
    model = tiny("sdpa", num_hidden_layers=1)
    breakdown.measure(model, Mixed(), lambda: prefill.prefill(model, prompts(300)), 1.0)
    assert shapes == [(128, 128), (128, 256), (44, 300)]


# ---- Models, prompts, what was published ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # as their publishers count them
        ("llama-3-8b", 8_030_261_248),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.2-1b", 1_235_814_400),
    ],
)
def test_shapes_of_random_models(name: str, num_parameters: int) -> None:
    shape = SHAPES[name]
    model = random_model(shape, shape.num_layers, dtype=torch.bfloat16, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_random_models_are_repeatable() -> None:
    before = torch.random.get_rng_state()
    first, second = (
        random_model(SHAPES["tiny"], 2, dtype=torch.float32, device="cpu") for _ in range(2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first.model.layers) == 2
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad


class Words:
    """A tokenizer: one token per word, its length."""

    def __init__(self, bos_token_id: int | None) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}


def loaded(tokenizer: Any = None, spec: RetrievalSpec | None = None) -> LoadedModel:
    return LoadedModel("some", tiny(), tokenizer, spec)


def test_prompts_of_text() -> None:
    assert prompt(loaded(Words(None)), 5, "a bc").tolist() == [[1, 2, 1, 2, 1]]
    assert prompt(loaded(Words(90)), 5, "a bc").tolist() == [[90, 1, 2, 1, 2]]
    assert prompt(loaded(Words(90)), 3, "a bc def ghij").tolist() == [[90, 1, 2]]
    assert prompt(loaded(Words(None)), 70).shape == (1, 70)
    with pytest.raises(ValueError, match="text has no tokens"):
        prompt(loaded(Words(None)), 5, " ")
    assert TEXT.endswith(" ")  # repeated, its words must not grow together


def test_prompts_of_models_without_tokenizer() -> None:
    ids = prompt(loaded(), 1000)
    assert ids.shape == (1, 1000)
    assert 0 <= int(ids.min()) < int(ids.max()) < VOCABULARY
    assert len(ids.unique()) > VOCABULARY // 2
    assert torch.equal(ids, prompt(loaded(), 1000))
    spec = RetrievalSpec()
    for length in (64, 1000):
        ids = prompt(loaded(spec=spec), length)
        assert ids.shape == (1, length)
        assert int(ids[0, -1]) in spec.key_tokens  # the last token asks


def test_published_times() -> None:
    """The speed-ups that the paper's abstract and section 4 round them to."""
    headline = {"100K": 1.8, "300K": 4.1, "500K": 6.8, "1000K": 10.0}
    by_length = {
        row.length: dict(zip(published.METHODS, row.seconds, strict=True)) for row in published.ROWS
    }
    for length, speedup in headline.items():
        seconds = by_length[length]
        assert seconds["FlashAttention-2"] / seconds["MInference"] == pytest.approx(
            speedup, rel=0.02
        )


def test_crossovers_are_over_all_dense_prefills() -> None:
    rows = [
        Row(length, method, [seconds], 1.0)
        for length, times in ((100, (1.0, 2.0, 1.5)), (200, (4.0, 3.0, 2.0)))
        for method, seconds in zip((SDPA, "dense", "sparse"), times, strict=True)
    ]
    found = crossovers(rows, (SDPA, "dense"))
    assert list(found) == ["sparse"]
    assert found["sparse"] is not None
    assert 100 < found["sparse"] < 200
