"""Scores of answers, by hand-made cases, and perplexity against the full logits."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from minference_ext.evaluation import scores, token_losses
from minference_ext.evaluation.perplexity import TextFiles
from minference_ext.evaluation.task import Case, Settings
from minference_ext.models import LoadedModel, first_tokens
from transformers import AutoModelForCausalLM

from tests import text_model
from tests.model_families import FAMILIES, Family, build
from tests.tiny_llama import VOCABULARY, tiny, tokens


@pytest.mark.parametrize(
    ("score", "prediction", "references", "expected"),
    [
        (scores.contains_any, " it is 71432.", ["71432"], 1.0),
        (scores.contains_any, "PARIS, I think", ["London", "Paris"], 1.0),
        (scores.contains_any, "", ["Paris"], 0.0),
        (scores.contained_share, "b, A and d", ["a", "b", "c", "e"], 0.5),
        (scores.contained_share, "all of abc", ["abc"], 1.0),
        (scores.has_number, " is 1234567.", ["1234567"], 1.0),
        (scores.has_number, " is 1,234,567, yes", ["1234567"], 1.0),
        (scores.has_number, " 7 or 1234567", ["1234567"], 1.0),
        (scores.has_number, " is 12345678", ["1234567"], 0.0),
        (scores.has_number, " is 123456", ["1234567"], 0.0),
        (scores.has_number, "key-1234567", ["1234567"], 1.0),  # the "-" is no sign
        (scores.has_number, "12-1234567", ["1234567"], 1.0),
        (scores.has_number, "is -1234567", ["1234567"], 0.0),
        (scores.first_number, "The answer is 42.", ["42"], 1.0),
        (scores.first_number, "42.0", ["42"], 1.0),
        (scores.first_number, "-3.5 or so", ["-3.5"], 1.0),
        (scores.first_number, "41, or 42", ["42"], 0.0),
        (scores.first_number, "none", ["42"], 0.0),
        (scores.option, "B", ["B", "Ben"], 1.0),
        (scores.option, " (B) Ben", ["B", "Ben"], 1.0),
        (scores.option, "The answer is B.", ["B", "Ben"], 1.0),
        (scores.option, "A is right", ["A", "Anna"], 1.0),
        (scores.option, "A man called Ben", ["B", "Ben"], 1.0),
        (scores.option, "C. Ben", ["B", "Ben"], 0.0),
        (scores.option, "Because of Anna", ["B", "Ben"], 0.0),
        (scores.option, "ben", ["B", "Ben"], 1.0),
        (scores.option, "", ["B", "Ben"], 0.0),
        # One word of two is right, and one of two is found.
        (scores.word_f1, "The red house!", ["a red car"], 0.5),
        (scores.word_f1, "red", ["a red car", "blue"], 2 / 3),
        (scores.word_f1, "Anna", ["Anna"], 1.0),
        (scores.word_f1, "the U.S. “army”", ["US army"], 1.0),
        (scores.word_f1, "O'Brien's", ["OBriens"], 1.0),
        (scores.word_f1, "red red", ["red"], 2 / 3),
        (scores.word_f1, "the", ["the"], 0.0),
        (scores.word_f1, "", ["red"], 0.0),
        (scores.character_f1, "安 娜。", ["安娜"], 1.0),
        (scores.character_f1, "安妮", ["安娜"], 0.5),
        (scores.character_f1, "", ["安娜"], 0.0),
    ],
)
def test_scores(
    score: scores.Score, prediction: str, references: list[str], expected: float
) -> None:
    assert score(prediction, references) == pytest.approx(expected)


def test_rouge() -> None:
    pytest.importorskip("rouge_score", reason="ROUGE is that of the package rouge_score")
    same = "The cat sat.\nThe dog ran."
    assert scores.rouge_lsum(same, ["else", same]) == pytest.approx(1.0)
    # Lines are sentences: their order does not matter, that of words does.
    assert scores.rouge_lsum("The dog ran.\nThe cat sat.", [same]) == pytest.approx(1.0)
    assert scores.rouge_lsum("the cat", ["the cat sat down"]) == pytest.approx(2 / 3)
    assert scores.rouge_lsum("nothing", [same]) == 0.0


# ---- Perplexity ----------------------------------------------------------------------------------


def losses_of_full_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """-log softmax by its definition, in float64, from all logits of one call."""
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    log_normalizer = logits.exp().sum(-1).log()
    losses: torch.Tensor = log_normalizer - logits.gather(1, ids[0, 1:, None])[:, 0]
    return losses


@pytest.mark.parametrize("attn_implementation", ["sdpa", "minference"])
@pytest.mark.parametrize(("length", "piece"), [(2, 1), (65, 64), (130, 64), (700, 99), (700, 4096)])
def test_losses_are_those_of_the_full_logits(
    length: int, piece: int, attn_implementation: str
) -> None:
    import minference_ext.transformers  # registers "minference"

    model, ids = tiny(attn_implementation), tokens(1, length)
    with torch.inference_mode():
        found = token_losses(model, ids, piece_tokens=piece)
        expected = losses_of_full_logits(model, ids)
    assert found.shape == (length - 1,)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert minference_ext.transformers.NAME == "minference"


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_losses_of_model_families(family: Family) -> None:
    model, ids = build(family, "sdpa"), tokens(1, 100)
    with torch.inference_mode():
        found, expected = token_losses(model, ids), losses_of_full_logits(model, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def scaled(kind: str, **settings: Any) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gemma2", {"final_logit_softcapping": 0.5}),
        ("cohere", {"logit_scale": 3.0}),
        ("granite", {"logits_scaling": 0.25}),
    ],
)
def test_losses_of_models_that_scale_their_logits(kind: str, settings: dict[str, float]) -> None:
    model, ids = scaled(kind, **settings), tokens(1, 100)
    with torch.inference_mode():
        found, expected = token_losses(model, ids), losses_of_full_logits(model, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_changes_its_logits_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("sdpa")
    forward = model.forward

    def with_a_bias(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + torch.arange(VOCABULARY) * 0.1
        return output

    monkeypatch.setattr(model, "forward", with_a_bias)
    with torch.inference_mode(), pytest.raises(ValueError, match="LlamaForCausalLM changes the"):
        token_losses(model, tokens(1, 20))
    with pytest.raises(ValueError, match="LlamaModel has no base model with output embeddings"):
        token_losses(tiny("sdpa").model, tokens(1, 20))


def test_perplexity_of_text_files(tmp_path: Path) -> None:
    tokenizer = text_model.tokenizer()
    texts = {
        "a.txt": "short",
        "b.txt": "the words of the list " * 90,
        "c.txt": "grass grows " * 400,
    }
    files = []
    for name, text in texts.items():
        files.append(tmp_path / name)
        files[-1].write_text(text, encoding="utf-8")
    model = tiny("sdpa", vocab_size=text_model.VOCABULARY)
    loaded = LoadedModel("tiny", model, tokenizer, None)
    task = TextFiles(tokenizer, Settings(samples=2), files)
    assert task.cases(300) == [Case(0), Case(1)]
    for case, name in zip(task.cases(300), ("b.txt", "c.txt"), strict=True):
        with torch.inference_mode():
            (answer,) = task.prompt(300, case).answers(loaded)
            ids = torch.tensor([tokenizer(texts[name])["input_ids"][:300]])
            expected = losses_of_full_logits(model, ids).mean().exp()
        assert answer.metric == "perplexity"
        assert answer.score == pytest.approx(float(expected), rel=1e-5)
    assert task.calibration(300) == task.prompt(300, Case(0))  # both are measured
    one = TextFiles(tokenizer, Settings(samples=1), files)
    assert one.cases(300) == [Case(0)]
    assert one.calibration(300) == task.prompt(300, Case(1))


def test_first_tokens_are_those_of_the_whole_text() -> None:
    tokenizer = text_model.tokenizer()
    text = "quiet-harbor 123. The special magic values " * 50
    whole = tokenizer(text)["input_ids"]
    for count in (1, 2, 7, 100, len(whole) - 1, len(whole), len(whole) + 1):
        assert first_tokens(tokenizer, text, count) == whole[:count]

    # A tokenizer that makes a token of 20 characters reads on until there are enough.
    def coarse(text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": list(range(math.ceil(len(text) / 20)))}

    assert first_tokens(coarse, "x" * 1000, 10) == list(range(10))
    assert first_tokens(coarse, "x" * 100, 10) == list(range(5))


def test_infinite_losses_are_refused() -> None:
    from minference_ext.command_line import Failure
    from minference_ext.evaluation.perplexity import Passage

    model = tiny("sdpa")
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    loaded = LoadedModel("tiny", model, SimpleNamespace(), None)
    with torch.inference_mode(), pytest.raises(Failure, match="pg19: the mean loss is nan"):
        Passage(tokens(1, 30)[0].tolist()).answers(loaded)
