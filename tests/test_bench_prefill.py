"""The command minference bench prefill: its table beside its JSON, the models and prompts it takes,
wrong arguments, and that what was measured is kept where it ends early."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.benchmark import prefill
from minference_ext.benchmark.attention import SDPA
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.tiny_llama import tiny

Capture = pytest.CaptureFixture[str]
SPARSE = "vertical_slash(30,100)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of whole words, and positions for 512 tokens."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = {word: index for index, word in enumerate(["<unk>", "<s>", "harbour", "salt", "ship"])}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>"
    ).save_pretrained(folder)
    tiny(max_position_embeddings=512).save_pretrained(folder)
    return folder


def bench(*arguments: str) -> int:
    return cli.main(["bench", "prefill", "--rounds", "1", "--threads", "1", *arguments])


def sentence(capsys: Capture) -> str:
    """The last line on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines: list[str] = captured.err.splitlines()
    assert lines[-1].startswith("minference")
    return lines[-1]


def test_command(capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path, picture = tmp_path / "prefill.json", tmp_path / "prefill.png"
    arguments = ["--model", "retrieval", "--lengths", "1500,200", "--methods", f"dense,{SPARSE}"]
    arguments += ["--breakdown", "--published", "--mlp-chunk", "512", "--json", str(path)]
    assert bench(*arguments, "--plot", str(picture)) == 0
    captured = capsys.readouterr()
    assert captured.err == "measured: 200 tokens\nmeasured: 1500 tokens\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = captured.out.splitlines()
    assert "threads: 1" in lines[0]
    assert lines[1] == "retrieval: 2 layers, 8 query heads, 2 kv heads, bfloat16"

    record = json.loads(path.read_text())
    assert {key: record[key] for key in ("format", "version", "model", "rounds", "dtype")} == {
        "format": "minference_prefill",
        "version": 1,
        "model": "retrieval",
        "rounds": 1,
        "dtype": "bfloat16",
    }
    assert (record["num_layers"], record["whole_num_layers"]) == (2, 2)
    assert (record["mlp_chunk"], record["is_complete"]) == (512, True)
    assert record["machine"]["threads"] == 1
    methods = [SDPA, "dense", SPARSE]
    assert [(row["length"], row["method"]) for row in record["rows"]] == [
        (length, method) for length in (200, 1500) for method in methods
    ]
    for row, line in zip(record["rows"], lines[4:], strict=False):
        cells = line.split()
        assert cells[:2] == [str(row["length"]), row["method"]]
        assert row["seconds"] == [row["median_seconds"]]
        assert [float(cell) for cell in cells[2:5]] == pytest.approx(row["seconds"] * 3, abs=1e-4)
        assert cells[5] == f"{row['speedup']:.2f}x"
        assert sum(row["breakdown"].values()) == pytest.approx(row["median_seconds"])
        assert list(row["breakdown"]) == ["estimate", "plan", "attention", "rest"]
        assert row["peak_bytes"] is None or row["peak_bytes"] >= 0
    assert record["rows"][-1]["computed_share"] < 0.9

    wide = lines[lines.index("Seconds by length") + 1 :]
    assert wide[0].split() == ["tokens", *methods]
    for line, length in zip(wide[1:3], (200, 1500), strict=True):
        medians = [row["median_seconds"] for row in record["rows"] if row["length"] == length]
        assert [float(cell) for cell in line.split()] == pytest.approx([length, *medians], abs=1e-4)
    assert list(record["crossovers"]) == [SPARSE]
    assert any(line.startswith(f"{SPARSE}: ") and "dense prefill" in line for line in lines)
    assert any(line.startswith("Published, not measured here: ") for line in lines)
    assert record["published"]["rows"][-1]["seconds"][0] == 1765.564


def test_checkpoint_and_text(capsys: Capture, checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("salt ship " * 3)
    options = ["--model", str(checkpoint), "--text", str(text), "--dtype", "float32"]
    assert bench(*options, "--lengths", "80", "--methods", "dense", "--json", "-") == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in record["rows"]] == [SDPA, "dense"]
    assert record["rows"][0]["breakdown"] is None
    assert "published" not in record
    assert record["crossovers"] == {}


def test_random_model_with_fewer_layers(capsys: Capture) -> None:
    options = ["--model", "random:tiny", "--layers", "1", "--lengths", "64", "--methods", "dense"]
    assert bench(*options, "--mlp-chunk", "0") == 0
    assert "\nrandom:tiny: 1 of 4 layers, 4 query heads, 2 kv heads" in capsys.readouterr().out
    assert bench(*options, "--json", "-", "--mlp-chunk", "0") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["num_layers"], record["whole_num_layers"]) == (1, 4)
    assert record["mlp_chunk"] is None


RETRIEVAL = ["--model", "retrieval"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: --model"),
        ([*RETRIEVAL, "--lengths", "63"], "'63' is not a whole number >= 64"),
        ([*RETRIEVAL, "--methods", "stripes"], "'stripes' is no method"),
        ([*RETRIEVAL, "--methods", "a_shape(1,2,3)"], "found 3 values; it takes sink, window"),
        ([*RETRIEVAL, "--methods", "none.json"], "none.json"),
        ([*RETRIEVAL, "--text", "/no/such/text"], "/no/such/text"),
        ([*RETRIEVAL, "--text", __file__], "--text needs a model with a tokenizer"),
        ([*RETRIEVAL, "--layers", "1"], "--layers is for random models; --model is retrieval"),
        ([*RETRIEVAL, "--rounds", "0"], "'0' is not a whole number >= 1"),
        (["--model", "random:gpt"], "it must be random: and one of llama-3-8b, qwen2.5-7b"),
        (["--model", "random:tiny", "--layers", "5"], "--layers is 5; random:tiny has 4"),
    ],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        bench(*arguments)
    assert exit_info.value.code == 2
    assert words in sentence(capsys)


def test_an_empty_text(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(SystemExit):
        bench("--model", "x", "--text", str(tmp_path / "empty"))
    assert "empty is empty" in sentence(capsys)


@pytest.mark.parametrize("model", ["retrieval", "random:tiny"])
def test_no_such_device(capsys: Capture, model: str) -> None:
    assert bench("--model", model, "--device", "tpu") == 1
    assert "--device is tpu; it must be cpu, cuda" in sentence(capsys)


@pytest.mark.parametrize("model", ["retrieval", "random:tiny"])
def test_no_gpu(capsys: Capture, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench("--model", model, "--device", "cuda") == 1
    assert sentence(capsys).endswith("--device is cuda; this PyTorch finds no NVIDIA GPU")


def test_longer_than_the_model(capsys: Capture, checkpoint: Path) -> None:
    assert bench("--model", str(checkpoint), "--lengths", "100,513") == 1
    assert f"--lengths has 513; {checkpoint} takes at most 512 tokens" in sentence(capsys)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes prefills of 128 tokens raise."""
    whole = prefill.prefill

    def fail_with(error: BaseException) -> None:
        def run(model: Any, ids: Tensor) -> None:
            if ids.shape[1] == 128:
                raise error
            whole(model, ids)

        monkeypatch.setattr(prefill, "prefill", run)

    return fail_with


OUT_OF_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory\ntrace"
)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RuntimeError(OUT_OF_MEMORY), 1, "128 tokens, SDPA: not enough memory ([enforce fail"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            1,
            "not enough memory (CUDA out of memory.)",
        ),
        (MemoryError(), 1, "128 tokens, SDPA: not enough memory (MemoryError)"),
        (ValueError("no chunks\nat all"), 1, "minference: error: 128 tokens, SDPA: no chunks"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_was_measured_is_kept(
    capsys: Capture,
    tmp_path: Path,
    failing: Callable[[BaseException], None],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    failing(error)
    path = tmp_path / "part.json"
    options = ["--model", "random:tiny", "--layers", "1", "--methods", SPARSE, "--json", str(path)]
    assert bench(*options, "--lengths", "64,128,256") == code
    captured = capsys.readouterr()
    assert words in captured.err.splitlines()[-1]
    assert [line.split()[:2] for line in captured.out.splitlines()[4:6]] == [
        ["64", SDPA],
        ["64", SPARSE],
    ]
    record = json.loads(path.read_text())
    assert [row["length"] for row in record["rows"]] == [64, 64]
    assert record["is_complete"] is False


def test_nothing_was_measured(
    capsys: Capture, tmp_path: Path, failing: Callable[[BaseException], None]
) -> None:
    failing(RuntimeError("no"))
    path = tmp_path / "none.json"
    options = ["--model", "random:tiny", "--layers", "1", "--lengths", "128"]
    assert bench(*options, "--json", str(path)) == 1
    assert sentence(capsys) == "minference: error: 128 tokens, SDPA: no"
    assert not path.exists()


def test_patterns_of_another_model(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "patterns.json"
    ModelPatterns([[HeadPattern.dense()] * 3]).save(path)
    options = ["--model", "random:tiny", "--layers", "1", "--lengths", "64"]
    assert bench(*options, "--methods", str(path)) == 1
    assert f"64 tokens, patterns({path}): patterns has 1 layers" in sentence(capsys)


def test_a_kernel_this_machine_lacks(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "abacus")
    assert bench(*RETRIEVAL) == 1
    assert "abacus" in sentence(capsys)
