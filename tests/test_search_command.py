"""The commands search and compare, and the prompts they make."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.methods import Layer
from minference_ext.models import LoadedModel
from minference_ext.pattern_text import parse_patterns, pattern_text
from minference_ext.search import key_value_prompts, text_prompts
from minference_ext.search import search as search_module
from minference_ext.search.measure import count_lines
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from tests.test_cli import Capture, run, sentence, wrong
from tests.test_search_model import SPEC, retrieval
from tests.tiny_llama import tiny

WINDOW = HeadPattern.a_shape
PLACES = ("--model", "x", "--out", "x.json")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Without Transformers' bars of weights that are loaded, stderr is ours alone."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and a tokenizer of bytes, which puts BOS first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{letter: number + 1 for number, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    tiny(vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> LoadedModel:
    from minference_ext.models import load_model

    return load_model(str(checkpoint), dtype=torch.float32)


# ---- Prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [400, 1000, 4001])
def test_prompts_of_a_tokenizer(loaded: LoadedModel, length: int) -> None:
    first, second = key_value_prompts(loaded, length, 2, seed=7)
    assert first.input_ids.shape == second.input_ids.shape == (1, length)
    assert first.input_ids.dtype == torch.int64
    (again,) = key_value_prompts(loaded, length, 1, seed=8)
    assert torch.equal(again.input_ids, second.input_ids)
    assert not torch.equal(first.input_ids, second.input_ids)
    assert first.name == "kv_retrieval, seed 7"
    assert first.input_ids[0].eq(0).nonzero().tolist() == [[0]]  # BOS, once
    text = loaded.tokenizer.decode(first.input_ids[0, 1:])
    data, _, question = text.rpartition('}\n\nKey: "')
    key = question.removesuffix('"\nIts value is: "')
    assert len(key) == 36
    assert f'"{key}": "' in data
    last_pair = data.rpartition('"' + key)[2]
    assert len(last_pair) > len('": "') + 36  # its value stands there, whole


@pytest.mark.parametrize("length", [100, 777])
def test_prompts_of_the_retrieval_model(length: int) -> None:
    """Pairs, as many as fit, and blanks; no token that nothing asks for."""
    (prompt,) = key_value_prompts(retrieval(), length, 1, seed=3)
    ids = prompt.input_ids
    assert ids.shape == (1, length)
    assert not any(token in SPEC.filler_tokens for token in ids[0].tolist())
    keys = [token for token in ids[0, :-16].tolist() if token in SPEC.key_tokens]
    assert len(keys) == len(set(keys)) == min(256, (length - 17) // 3)


def test_text_prompts(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc" * 50, encoding="utf-8")
    (prompt,) = text_prompts(loaded, 100, [path])
    assert loaded.tokenizer.decode(prompt.input_ids[0]) == "<s>" + ("abc" * 50)[:99]
    assert (prompt.name, prompt.length) == (str(path), 100)


def test_prompts_that_cannot_be(loaded: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("short", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.txt has 6 tokens; it must have 100 or more"):
        text_prompts(loaded, 100, [path])
    with pytest.raises(ValueError, match="model retrieval has no tokenizer"):
        text_prompts(retrieval(), 100, [path])
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ValueError, match=r"text\.txt: it must be text in UTF-8"):
        text_prompts(loaded, 100, [path])
    with pytest.raises(FileNotFoundError):
        text_prompts(loaded, 100, [tmp_path / "missing"])
    with pytest.raises(ValueError, match=r"length is 100; the shortest prompt .* has \d+ tokens"):
        key_value_prompts(loaded, 100, 1, seed=0)
    with pytest.raises(ValueError, match="num_pairs: found 0"):
        key_value_prompts(retrieval(), 18, 1, seed=0)


# ---- The command search --------------------------------------------------------------------------


def search_arguments(checkpoint: Path, out: Path, *more: str) -> list[str]:
    budget = ["--budget", "48,200", "--step", "10", "--length", "400", "--dtype", "float32"]
    return ["search", "--model", str(checkpoint), "--out", str(out), *budget, *more]


@pytest.mark.parametrize("command", ["search", "compare"])
def test_help(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert f"minference {command} " in text.split("examples:\n")[1]
    assert max(map(len, text.splitlines())) <= 110


def test_search_writes_both_files(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "patterns.json"
    assert cli.main(search_arguments(checkpoint, out, "--samples", "2")) == 0
    captured = capsys.readouterr()
    patterns = ModelPatterns.load(out)
    record = json.loads((tmp_path / "patterns.search.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "patterns.json",
        "patterns.search.json",
    ]
    assert (patterns.num_layers, patterns.num_heads, patterns.model) == (2, 4, str(checkpoint))
    assert (record["format"], record["version"]) == ("minference_search", 1)
    assert (record["model"], record["objective"]) == (str(checkpoint), "output")
    assert (record["num_layers"], record["num_heads"]) == (2, 4)
    assert record["prompts"] == [
        {"name": f"kv_retrieval, seed {seed}", "length": 400} for seed in (0, 1)
    ]
    assert (record["budget"]["sink"], record["budget"]["window"]) == (48, 200)
    assert "cpu" in record["machine"]
    assert [(head["layer"], head["head"]) for head in record["heads"]] == [
        (layer, head) for layer in range(2) for head in range(4)
    ]
    assert patterns.scores is not None
    for head in record["heads"]:
        (pattern,) = parse_patterns(head["pattern"])
        assert patterns.layers[head["layer"]][head["head"]] == pattern
        assert patterns.scores[head["layer"]][head["head"]] == head["error"]
        assert head["pattern"] in captured.out
        assert head["reason"] in captured.out
        assert len(head["candidates"]) == 6
        for one in (head, *head["candidates"]):
            assert {"pattern", "error", "recall", "computed_share"} <= one.keys()
            assert 0.0 <= one["recall"] <= 1.0
    assert f"patterns: {out}\nrecord: {tmp_path / 'patterns.search.json'}" in captured.out
    assert captured.err.count("\n") == 4
    assert "prompt 2 of 2, layer 2 of 2: " in captured.err


def test_counts_in_place_of_many_heads(
    capsys: Capture, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minference_ext.cli import search as command

    monkeypatch.setattr(command, "MAX_HEADS_SHOWN", 7)
    out = tmp_path / "patterns.json"
    text = run(capsys, *search_arguments(checkpoint, out))
    for pattern, count in ModelPatterns.load(out).counts():
        assert any(
            line.split() == [pattern_text(pattern), str(count)] for line in text.splitlines()
        )
    heads = json.loads((tmp_path / "patterns.search.json").read_text())["heads"]
    error = sum(head["error"] for head in heads) / 8
    assert f"\nmeans of 8 heads that were searched: error {error:.2g}, recall 1.0000, " in text


def test_search_of_text(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("".join(chr(97 + (n * n) % 23) for n in range(500)), encoding="utf-8")
    out = tmp_path / "patterns"  # a name without .json
    run(capsys, *search_arguments(checkpoint, out, "--text", str(text), "--threads", "1"))
    record = json.loads((tmp_path / "patterns.search.json").read_text())
    assert record["prompts"] == [{"name": str(text), "length": 400}]


def test_search_in_upstreams_format(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "patterns.json"
    run(capsys, *search_arguments(checkpoint, out, "--format", "upstream"))
    assert isinstance(json.loads(out.read_text()), list)
    record = json.loads((tmp_path / "patterns.search.json").read_text())
    kinds = {
        one["pattern"].partition("(")[0] for head in record["heads"] for one in head["candidates"]
    }
    assert kinds == {"a_shape", "vertical_slash"}


def test_interrupted_and_resumed(
    capsys: Capture, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain.json"
    run(capsys, *search_arguments(checkpoint, plain))

    calls: list[int] = []

    def interrupted(layer: Layer) -> Any:
        calls.append(layer.layer_idx)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return count_lines(layer)

    monkeypatch.setattr(search_module, "count_lines", interrupted)
    out, progress = tmp_path / "patterns.json", tmp_path / "patterns.json.progress.json"
    assert cli.main(search_arguments(checkpoint, out, "--resume")) == 1
    assert f"--resume: there is no {progress}" in sentence(capsys)
    assert cli.main(search_arguments(checkpoint, out)) == 130
    error = capsys.readouterr().err
    assert f"finished layers are in {progress}: the same command goes on from there" in error
    assert progress.exists()
    assert not out.exists()

    assert cli.main(search_arguments(checkpoint, out, "--seed", "5")) == 1
    assert "the progress of another search: its prompts is" in capsys.readouterr().err
    too_short = ("--restart", "--length", "100", "--budget", "8,64")
    assert cli.main(search_arguments(checkpoint, out, *too_short)) == 1
    assert "length is 100; the shortest prompt" in capsys.readouterr().err
    assert progress.exists()  # nothing began that could take its place
    assert calls == [0, 1]

    kept = tmp_path / "kept"
    shutil.copy(progress, kept)
    run(capsys, *search_arguments(checkpoint, out, "--resume"))
    assert calls == [0, 1, 1]
    assert not progress.exists()
    for name in ("patterns.json", "patterns.search.json"):
        same = tmp_path / name.replace("patterns", "plain")
        assert (tmp_path / name).read_bytes() == same.read_bytes()

    shutil.copy(kept, progress)
    run(capsys, *search_arguments(checkpoint, out, "--seed", "5", "--restart"))
    assert calls == [0, 1, 1, 0, 1]
    assert not progress.exists()


def test_interrupted_before_a_layer_is_done(
    capsys: Capture, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(layer: Layer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "count_lines", interrupted)
    assert cli.main(search_arguments(checkpoint, tmp_path / "patterns.json")) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "--out", "x.json"], "required: --model"),
        (["search", "--model", "x"], "required: --out"),
        (["search", "--model", "x", "--out", "/no/such/x.json"], "/no/such is not a folder"),
        (["search", "--budget", "1024"], "'1024' is not two whole numbers, as in 1024,4096"),
        (["search", "--budget", "-1,5"], "--budget"),
        (["search", "--budget", "0,0"], "'0,0': one of the two must be > 0"),
        (["search", "--refine", "1"], "'1' is not a number between 0 and 1"),
        (["search", "--refine", "much"], "'much' is not a number between 0 and 1"),
        (["search", "--length", "63"], "'63' is not a whole number >= 64"),
        (["search", "--resume", "--restart"], "not allowed with argument"),
        (["search", "--objective", "speed"], "invalid choice: 'speed'"),
        (
            ["search", "--model", "x", "--out", "x.json", "--text", __file__, "--samples", "2"],
            "--samples counts prompts of key-value pairs; --text has one prompt per file",
        ),
        (["search", "--text", "missing.txt"], "there is no file missing.txt"),
        (["search", "--text", "/"], "there is no file /"),
        (
            ["search", *PLACES, "--objective", "upstream", "--budget", "8,64"],
            "--budget is for --objective output",
        ),
        (
            ["search", *PLACES, "--objective", "upstream", "--cost", "tiles"],
            "--cost is for --objective output",
        ),
        (["search", *PLACES, "--refine-step", "100,100"], "--refine-step is for --refine"),
        (["compare", "x.json", "--model", "x", "--step", "5"], "--step is for --equal-cost"),
        (["compare"], "required: FILE"),
        (["compare", "x.json"], "required: --model"),
    ],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], words: str) -> None:
    assert words in wrong(capsys, *arguments)


def test_failures_are_sentences(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "patterns.json"
    short = tmp_path / "short.txt"
    short.write_text("short", encoding="utf-8")
    cases = [
        (["--model", str(tmp_path / "none")], "--model: there is no folder"),
        (["--length", "100", "--budget", "8,64"], "length is 100; the shortest prompt"),
        (["--text", str(short)], "short.txt has 6 tokens; it must have 400 or more"),
        # Before minutes pass that it takes to load a model.
        (
            ["--budget", "200,200", "--model", "/none"],
            "budget: found 200,200, which covers all 400 tokens",
        ),
        (["--model", "retrieval", "--text", str(short)], "model retrieval has no tokenizer"),
    ]
    for more, words in cases:
        assert cli.main(search_arguments(checkpoint, out, *more)) == 1
        assert words in sentence(capsys)
    assert not out.exists()


def test_upstreams_format_and_a_sliding_window(
    capsys: Capture, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "windows"
    shutil.copytree(checkpoint, folder)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=100,
        max_window_layers=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    arguments = search_arguments(folder, tmp_path / "out.json")
    assert cli.main([*arguments, "--format", "upstream"]) == 1
    assert "--format upstream has no pattern for the layers of this model" in sentence(capsys)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err.startswith(
        "warning: 1 of 2 layers attend a sliding window shorter than 400 tokens whatever the method"
    )


def test_a_warning_beyond_the_models_length(
    capsys: Capture, checkpoint: Path, tmp_path: Path
) -> None:
    arguments = search_arguments(checkpoint, tmp_path / "out.json", "--length", "2100")
    assert cli.main([*arguments, "--step", "400"]) == 0
    warning = (
        "warning: prompts have 2100 tokens; the model's config says that it is made for 2048\n"
    )
    assert capsys.readouterr().err.startswith(warning)


def test_search_without_transformers(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert cli.main(search_arguments(tmp_path, tmp_path / "out.json")) == 1
    assert 'models need transformers: pip install "transformers>=4.57"' in sentence(capsys)


# ---- The command compare -------------------------------------------------------------------------


def test_compare(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    files = []
    for name, pattern in (("window", WINDOW(10, 60)), ("dense", HeadPattern.dense())):
        files.append(str(tmp_path / f"{name}.json"))
        ModelPatterns.uniform(pattern, 2, 4).save(files[-1])
    arguments = ["--model", str(checkpoint), "--length", "400", "--dtype", "float32"]
    path = tmp_path / "errors.json"
    text = run(capsys, "compare", *files, *arguments, "--samples", "2", "--json", str(path))
    record = json.loads(path.read_text())
    assert record["format"] == "minference_comparison"
    assert [prompt["name"] for prompt in record["prompts"]] == [
        "kv_retrieval, seed 1000",  # not one that the search calibrates on by default
        "kv_retrieval, seed 1001",
    ]
    window, dense = record["files"]
    assert dense["error"] < 1e-6 < 0.01 < window["error"]
    assert window["recall"] < dense["recall"] == pytest.approx(1.0)
    assert window["computed_share"] < 1.0 <= dense["computed_share"]
    for file in record["files"]:
        assert len(file["heads"]) == 8
        errors = [head["error"] for head in file["heads"]]
        assert file["error"] == pytest.approx(sum(errors) / 8)
        assert file["name"] in text
    assert "a_shape(10,60)" in text

    printed = run(capsys, "compare", *files, *arguments, "--samples", "2", "--json", "-")
    assert json.loads(printed) == record


def test_compare_at_equal_cost(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    """Every head of the second file costs what that of the first does, and keeps its kind."""
    files = []
    for name, pattern in (("few", WINDOW(48, 200)), ("many", WINDOW(48, 300))):
        files.append(str(tmp_path / f"{name}.json"))
        ModelPatterns.uniform(pattern, 2, 4).save(files[-1])
    path = tmp_path / "errors.json"
    run(
        capsys,
        "compare",
        *files,
        *["--model", str(checkpoint), "--length", "400", "--dtype", "float32"],
        *["--equal-cost", "--step", "4", "--json", str(path)],
    )
    few, many = json.loads(path.read_text())["files"]
    assert {head["pattern"] for head in few["heads"]} == {"a_shape(48,200)"}
    assert many["computed_share"] == pytest.approx(few["computed_share"], rel=0.02)
    for one, other in zip(few["heads"], many["heads"], strict=True):
        assert other["error"] == pytest.approx(one["error"], rel=0.3)


def test_compare_refuses_a_file_of_another_shape(
    capsys: Capture, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    ModelPatterns.uniform(WINDOW(10, 60), 3, 4).save(path)
    assert cli.main(["compare", str(path), "--model", str(checkpoint), "--length", "400"]) == 1
    assert "found 3 layers x 4 heads; the model has 2 x 4" in sentence(capsys)
    assert cli.main(["compare", "nothing.json", "--model", str(checkpoint)]) == 1
    assert "nothing.json" in sentence(capsys)
