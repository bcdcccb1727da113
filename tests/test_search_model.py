"""The search of a whole model: capture, the roles of the retrieval model, means over prompts,
refinement, and that an interrupted search ends with the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns
from minference_ext.methods import Layer
from minference_ext.models import LoadedModel
from minference_ext.pattern_text import pattern_text
from minference_ext.search import (
    Prompt,
    SearchResult,
    SearchSettings,
    compare_patterns,
    key_value_prompts,
    search_patterns,
    size_ladder,
)
from minference_ext.search import search as search_module
from minference_ext.search.capture import NAME, visit_layers
from minference_ext.search.measure import Dense
from minference_ext.testing import RetrievalSpec, build_retrieval_model, head_roles
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.tiny_llama import HEADS, LAYERS, tiny, tokens

SPEC = RetrievalSpec(
    num_keys=256,
    num_values=256,
    num_fillers=64,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
)
SETTINGS = SearchSettings(sink=48, window=200, step=10)
LINES = HeadPattern.vertical_slash


def retrieval(dtype: torch.dtype = torch.float32, spec: RetrievalSpec = SPEC) -> LoadedModel:
    return LoadedModel("retrieval", build_retrieval_model(spec, dtype=dtype), None, spec)


def prompts_of(length: int, *seeds: int) -> list[Prompt]:
    """Random tokens for the tiny Llama."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 97, (1, length), generator=generator)
        found.append(Prompt(f"random {seed}", ids))
    return found


# ---- Capture -------------------------------------------------------------------------------------


def test_layers_in_order_and_the_model_goes_on_dense() -> None:
    model = tiny("sdpa")
    ids = tokens(1, 300)
    states: list[Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda *call: states.append(call[2]))
    model(input_ids=ids, use_cache=False)
    seen = []

    def visit(layer: Layer, window: int | None) -> Tensor:
        seen.append((layer.layer_idx, window, tuple(layer.q.shape), tuple(layer.v.shape)))
        return Dense.of(layer).out

    visit_layers(model, ids, visit)
    assert seen == [(n, None, (1, HEADS, 300, 32), (1, 2, 300, 32)) for n in range(LAYERS)]
    for mine, theirs in zip(states[LAYERS:], states[:LAYERS], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(fails: bool) -> None:
    model = tiny("eager")
    chunked = model.model.layers[0].mlp
    own = chunked.forward
    chunked.forward = own  # as chunk_mlp leaves it

    def visit(layer: Layer, window: int | None) -> Tensor:
        assert model.config._attn_implementation == NAME
        if fails and layer.layer_idx == 1:
            raise RuntimeError("no")
        return Dense.of(layer).out

    if fails:
        with pytest.raises(RuntimeError, match="no"):
            visit_layers(model, tokens(1, 100), visit)
    else:
        visit_layers(model, tokens(1, 100), visit)
    assert model.config._attn_implementation == "eager"
    assert vars(chunked)["forward"] == own
    assert "forward" not in vars(model.model.layers[1].mlp)


def test_the_attention_function_is_for_the_search_alone() -> None:
    with pytest.raises(
        ValueError, match=r'"minference_search" is for the prompts of minference_ext'
    ):
        tiny(NAME)(input_ids=tokens(1, 100))


def test_a_model_without_attention_functions() -> None:
    class Silent(type(tiny())):  # type: ignore[misc]
        def forward(self, **_: Any) -> None: ...

    model = Silent(tiny().config)
    with pytest.raises(ValueError, match="Silent calls no attention function"):
        visit_layers(model, tokens(1, 100), lambda layer, window: layer.q)


# ---- The search ----------------------------------------------------------------------------------


def roles_are_found(result: SearchResult, spec: RetrievalSpec) -> None:
    for heads, roles in zip(result.layers, head_roles(spec), strict=True):
        for head, role in zip(heads, roles, strict=True):
            equals = [
                one.pattern
                for one in head.candidates
                if one.pattern.kind == "vertical_slash" and one.error <= head.error + 0.01
            ]
            if role in ("local", "sink"):
                assert head.pattern == result.settings.budget, role
                assert "needs no estimation" in head.reason
            elif role == "previous_token":
                assert head.pattern.kind == "vertical_slash"
                assert head.pattern.sizes[1] == max(pattern.sizes[1] for pattern in equals)
                assert head.reason == "slash: 1 diagonal holds 95 %"
            else:
                assert head.pattern.kind == "vertical_slash"
                assert head.pattern.sizes[0] == max(pattern.sizes[0] for pattern in equals)
                assert head.reason.startswith("vertical: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_roles_of_the_retrieval_model(seed: int, dtype: torch.dtype) -> None:
    """A slash head, windows, sinks, and an induction head that reads far columns."""
    of_model = retrieval(dtype)
    settings = SearchSettings(sink=64, window=256, step=10)
    prompts = key_value_prompts(of_model, 2048, 1, seed)
    roles_are_found(search_patterns(of_model.model, prompts, settings), SPEC)


def test_roles_at_4096_tokens_with_the_papers_step() -> None:
    spec = RetrievalSpec()
    of_model = retrieval(torch.bfloat16, spec)
    prompts = key_value_prompts(of_model, 4096, 1, seed=0)
    settings = SearchSettings(sink=128, window=512)
    roles_are_found(search_patterns(of_model.model, prompts, settings), spec)


def test_prompts_are_averaged() -> None:
    settings = SearchSettings(sink=48, window=200, step=1)
    prompts = prompts_of(700, 1, 2, 3)
    alone = [search_patterns(tiny(), [prompt], settings) for prompt in prompts]
    together = search_patterns(tiny(), prompts, settings)
    moved = 0
    for layer in range(LAYERS):
        for head in range(HEADS):
            found = together.layers[layer][head]
            per_prompt = [result.layers[layer][head] for result in alone]
            for number, one in enumerate(found.candidates):
                same = [result.candidates[number] for result in per_prompt]
                assert one.error == pytest.approx(sum(each.error for each in same) / 3)
                assert one.recall == pytest.approx(sum(each.recall for each in same) / 3)
                assert one.computed_share == pytest.approx(
                    sum(each.computed_share for each in same) / 3
                )
                sizes = {each.pattern for each in same}
                moved += len(sizes) > 1
                if one.pattern.kind != "a_shape":
                    ladder = size_ladder(settings.candidates[number - 1], 700, settings.step)
                    rungs = [ladder.index(each.pattern) for each in same]
                    assert abs(ladder.index(one.pattern) - sum(rungs) / 3) <= 0.5
            assert found.lines is not None
            assert found.error == min(
                one.error for one in found.candidates if one.pattern == found.pattern
            )
    assert moved > 0  # or nothing was averaged


def test_upstream_writes_what_its_code_writes(tmp_path: Path) -> None:
    result = search_patterns(tiny(), prompts_of(1100, 1), SearchSettings(objective="upstream"))
    allowed = {LINES(100, 800), LINES(1000, 6096), LINES(30, 800), LINES(100, 750)}
    allowed |= {LINES(500, 700), LINES(3500, 100)}
    for heads in result.layers:
        for head in heads:
            assert head.pattern in allowed
            assert head.score == max(one.recall for one in head.candidates)
            assert head.recall >= head.score - 0.1  # as the kernels run it, in whole tiles
    path = tmp_path / "patterns.json"
    result.save(path, format="upstream")
    assert ModelPatterns.load(path).layers == result.patterns.layers
    assert json.loads(result.save(path).read_text())["budget"] == {}


def test_refine_after_the_choice() -> None:
    plain = search_patterns(tiny(), prompts_of(600, 1, 2), SETTINGS)
    recalls = [head.recall for heads in plain.layers for head in heads]
    threshold = sorted(recalls)[len(recalls) // 2]  # half of the heads miss it
    settings = SearchSettings(sink=48, window=200, step=10, refine=threshold, refine_step=(30, 20))
    refined = search_patterns(tiny(), prompts_of(600, 1, 2), settings)
    changed = 0
    for before, after in zip(sum(plain.layers, ()), sum(refined.layers, ()), strict=True):
        assert after.recall_before is not None
        assert after.candidates == before.candidates
        if after.pattern == before.pattern:
            assert after.recall_before >= threshold
            assert after.reason == before.reason
        else:
            changed += 1
            assert after.pattern.kind == "vertical_slash"
            assert after.recall_before < threshold <= after.recall
            assert after.score == after.error < before.error
            assert f"enlarged from {pattern_text(before.pattern)} for the recall" in after.reason
    assert (refined.record()["refine"], refined.record()["refine_step"]) == (threshold, [30, 20])
    assert changed >= 2


def model_with_windows(*layer_types: str) -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=100,
        max_window_layers=1,
        layer_types=list(layer_types),
    )
    return Qwen2ForCausalLM(config).eval()


def test_layers_with_a_sliding_window_are_not_searched() -> None:
    model = model_with_windows("full_attention", "sliding_attention")
    result = search_patterns(model, prompts_of(400, 1), SETTINGS)
    assert all(head.candidates for head in result.layers[0])
    for head in result.layers[1]:
        assert (head.pattern, head.reason) == (HeadPattern.dense(), "sliding window")
        assert (head.error, head.recall) == (0.0, 1.0)
        assert 0.0 < head.computed_share < 0.9
    assert (
        compare_patterns(model, prompts_of(400, 1), [("a", result.patterns)])[0].heads[-1].layer
        == 0
    )


def test_a_model_of_sliding_windows_alone_has_nothing_to_search(tmp_path: Path) -> None:
    model = model_with_windows("sliding_attention", "sliding_attention")
    with pytest.raises(ValueError, match="every layer has a sliding window shorter than"):
        search_patterns(model, prompts_of(400, 1), SETTINGS, progress=tmp_path / "progress.json")
    assert list(tmp_path.iterdir()) == []
    within = search_patterns(model, prompts_of(100, 1), SearchSettings(sink=8, window=32, step=1))
    assert all(head.candidates for heads in within.layers for head in heads)


def test_layers_without_attention_are_dense() -> None:
    """As in models that mix attention with layers of other kinds."""

    class Through(torch.nn.Module):
        def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
            return hidden_states

    model = tiny()
    model.model.layers[0] = Through()
    result = search_patterns(model, prompts_of(400, 1), SETTINGS)
    assert {head.reason for head in result.layers[0]} == {"no attention"}
    assert {head.pattern for head in result.layers[0]} == {HeadPattern.dense()}
    assert all(head.candidates for head in result.layers[1])


@pytest.mark.parametrize(
    ("lengths", "settings", "words"),
    [
        ((128, 200), SETTINGS, r"found lengths \[128, 200\]; they must be of one length"),
        ((60,), SETTINGS, "at least 64"),
        ((), SETTINGS, r"found lengths \[\]"),
        ((128,), SETTINGS, "budget: found 48,200, which covers all 128 tokens of the prompt"),
    ],
)
def test_prompts_and_budgets_that_make_no_sense(
    lengths: tuple[int, ...], settings: SearchSettings, words: str
) -> None:
    prompts = [prompt for length in lengths for prompt in prompts_of(length, 1)]
    with pytest.raises(ValueError, match=words):
        search_patterns(tiny(), prompts, settings)


def test_attention_that_is_not_finite() -> None:
    model = tiny()
    model.model.layers[1].self_attn.v_proj.weight.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="layer 1, head 0: attention is not finite"):
        search_patterns(model, prompts_of(300, 1), SETTINGS)


# ---- Resuming ------------------------------------------------------------------------------------


class Stop(Exception):
    """What interrupts a search."""


def stop_at(prompt: int, layer: int) -> Callable[[int, int], None]:
    def on_layer(*place: int) -> None:
        if place == (prompt, layer):
            raise Stop

    return on_layer


def files_of(result: SearchResult, folder: Path) -> tuple[bytes, bytes]:
    folder.mkdir(exist_ok=True)
    record = result.save(folder / "patterns.json")
    assert record == folder / "patterns.search.json"
    return (folder / "patterns.json").read_bytes(), record.read_bytes()


@pytest.mark.parametrize("objective", ["output", "upstream"])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_resuming_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int], objective: Any
) -> None:
    settings = SearchSettings(
        objective=objective, sink=48, window=200, step=10, refine=0.9, refine_step=(30, 30)
    )
    prompts = prompts_of(400, 1, 2)
    expected = files_of(search_patterns(tiny(), prompts, settings, name="tiny"), tmp_path / "a")

    progress = tmp_path / "progress.json"

    def search(on_layer: Callable[[int, int], None] | None = None) -> SearchResult:
        return search_patterns(
            tiny(), prompts, settings, name="tiny", progress=progress, on_layer=on_layer
        )

    with pytest.raises(Stop):
        search(stop_at(*place))
    searched: list[int] = []
    original = search_module._PromptSearch._candidates

    def counted(self: Any, layer: Layer, dense: Dense) -> Any:
        searched.append(layer.layer_idx)
        return original(self, layer, dense)

    monkeypatch.setattr(search_module._PromptSearch, "_candidates", counted)
    assert files_of(search(), tmp_path / "b") == expected
    assert len(searched) == 2 * LAYERS - (place[0] * LAYERS + place[1] + 1)
    searched.clear()
    visited: list[tuple[int, ...]] = []
    all_known = search(lambda *place: visited.append(place))
    assert files_of(all_known, tmp_path / "c") == expected
    assert (searched, visited) == ([], [])


def test_progress_of_another_search(tmp_path: Path) -> None:
    progress = tmp_path / "progress.json"
    prompts = prompts_of(300, 1)

    def search(prompts: list[Prompt], settings: SearchSettings, name: str = "tiny") -> None:
        search_patterns(tiny(), prompts, settings, name=name, progress=progress)

    search(prompts, SETTINGS)
    saved = progress.read_bytes()
    others = [
        (prompts, SETTINGS, "other", "its model is 'tiny', here it is 'other'; restart to discard"),
        (prompts_of(310, 1), SETTINGS, "tiny", "its length is 300, here it is 310"),
        (prompts_of(300, 2), SETTINGS, "tiny", r"its prompts is \[\['random 1'"),
        (prompts, SearchSettings(sink=48, window=201, step=10), "tiny", "its window is 200"),
    ]
    for ids, settings, name, words in others:
        with pytest.raises(ValueError, match=words):
            search(ids, settings, name)
    assert progress.read_bytes() == saved
    for text in ("{", "[]", '{"format": "minference_patterns"}', "3"):
        progress.write_text(text)
        with pytest.raises(ValueError, match="is not the progress of a search; move it away"):
            search(prompts, SETTINGS)
