"""What models.py loads, and what it refuses in a sentence."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from minference_ext.command_line import Failure
from minference_ext.models import (
    LoadedModel,
    check_device,
    layers_with_window,
    load_model,
    model_from,
    warn_of_length,
)
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from tests import text_model

WEIGHTS = "model.safetensors"
ONE = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_checkpoint(folder: Path) -> None:
    loaded = load_model(str(folder), dtype=torch.float32)
    assert (loaded.name, loaded.spec) == (str(folder), None)
    assert loaded.tokenizer.decode(loaded.tokenizer("hill")["input_ids"]) == "hill"
    assert not loaded.model.training
    saved = load_file(folder / WEIGHTS)
    for name, weight in loaded.model.state_dict().items():
        assert not weight.requires_grad
        assert torch.equal(weight, saved[name])


def test_the_retrieval_model() -> None:
    arguments = argparse.Namespace(model="retrieval:3", dtype="float32", device="cpu")
    loaded = model_from(arguments)
    assert loaded.spec is not None
    assert (loaded.spec.hops, loaded.tokenizer) == (3, None)
    assert loaded.model.dtype == torch.float32
    for name in ("retrieval:", "retrieval:0", "retrieval:-1", "retrieval:x"):
        with pytest.raises(Failure, match=f"--model {name}: the hops must be a whole number >= 1"):
            load_model(name)


def test_weights_that_are_missing_or_of_another_shape(copy: Path) -> None:
    """They would be random, and Transformers only warns of that."""
    weights = load_file(copy / WEIGHTS)
    for wrong in ({}, {ONE: torch.zeros(3, 3)}):
        others = {name: weight for name, weight in weights.items() if name != ONE}
        save_file({**others, **wrong}, copy / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(Failure, match=rf"the checkpoint lacks {ONE}, or .*; 1 such weights"):
            load_model(str(copy))


def test_what_is_no_checkpoint(copy: Path, tmp_path: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failure, match=r"copy: SafetensorError: .* \(give a folder with a check"):
        load_model(str(copy))
    (copy / WEIGHTS).write_bytes(whole)
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(Failure, match="copy: its tokenizer cannot be loaded: "):
        load_model(str(copy))
    (copy / "config.json").write_text("{")
    with pytest.raises(Failure, match="copy: It looks like the config file"):
        load_model(str(copy))
    with pytest.raises(Failure, match=f"{WEIGHTS} is a file; give the folder that it is in"):
        load_model(str(copy / WEIGHTS))
    with pytest.raises(Failure, match="there is no folder /no/such"):
        load_model("/no/such")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "it must be cpu, cuda or, of several GPUs, cuda:1"),
        ("cuda:x", "it must be"),
        ("mps", "it must be"),
        ("meta", "it must be"),
        ("cuda:77", "no NVIDIA GPU|GPUs here end at cuda:"),
    ],
)
def test_devices_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(Failure, match=f"--device is {name}; .*({words})"):
        check_device(name)
    with pytest.raises(Failure, match=f"--device is {name}; "):  # before a model is loaded
        load_model("/no/such", device=name)
    check_device("cpu")


class Configured:
    """As much of a model as says how long its prompts may be."""

    def __init__(self, config: Qwen2Config) -> None:
        self.config = config


@pytest.mark.parametrize(
    ("window", "first", "length", "expected"),
    [(None, 0, 4096, 0), (1024, 1, 4096, 3), (1024, 1, 1025, 3), (1024, 1, 1024, 0)],
)
def test_warnings_of_a_length(
    window: int | None, first: int, length: int, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Qwen2Config(
        num_hidden_layers=4,
        use_sliding_window=window is not None,
        sliding_window=window,
        max_window_layers=first,
        max_position_embeddings=2048,
    )
    loaded = LoadedModel("m", Configured(config), None, None)  # type: ignore[arg-type]
    assert layers_with_window(loaded, length) == expected
    warn_of_length(loaded, length)
    error = capsys.readouterr().err
    assert ("warning: 3 of 4 layers attend a sliding window shorter than " in error) == bool(
        expected
    )
    assert ("the model's config says that it is made for 2048" in error) == (length > 2048)
