"""The README's quick starts, copied and run where nothing but the wheel is installed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from minference_ext import cli
from minference_ext.transformers import NAME
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import text_model
from tests.installed_wheel import ROOT, WheelEnvironment

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(heading: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks under a heading of the README, in order."""
    section = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL
    )
    assert section is not None, f"README has no heading {heading!r}"
    found = re.findall(r"^```(\w*)\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert found, f"no code under {heading!r}"
    return found


def block(heading: str, language: str) -> str:
    texts = [text for of, text in blocks(heading) if of == language]
    assert len(texts) == 1, f"{len(texts)} blocks of {language!r} under {heading!r}"
    return texts[0]


def run(script: str, folder: Path, environment: WheelEnvironment, shell: str) -> str:
    """What a script prints in `folder`, with the programs of the environment first."""
    path = os.pathsep.join([str(environment.python.parent), os.environ["PATH"]])
    done = subprocess.run(
        [shell, "-"] if shell != "bash" else ["bash", "-euo", "pipefail", "-s"],
        input=script,
        cwd=folder,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and a tokenizer of whole words, as a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    words = ["<unk>", "<s>", *(f"word{index}" for index in range(98))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1 << 15,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def test_transformers(
    wheel_environment: WheelEnvironment, checkpoint: Path, tmp_path: Path
) -> None:
    pip = [str(wheel_environment.python), "-m", "pip", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-q", f"transformers=={version('transformers')}"], check=True)
    script, replaced = re.subn(
        r'^path = ".*?"',
        f'path = "{checkpoint}"',
        block("Quick start: Transformers", "python"),
        flags=re.M,
    )
    assert replaced == 1
    script += f"\nassert model.config._attn_implementation == {NAME!r}\nprint(tokens.shape)\n"
    printed = run(script, tmp_path, wheel_environment, str(wheel_environment.python))
    assert "torch.Size([1, " in printed


def test_pytorch(wheel_environment: WheelEnvironment, tmp_path: Path) -> None:
    script = block("Quick start: PyTorch", "python")
    printed = run(script, tmp_path, wheel_environment, str(wheel_environment.python))
    assert re.search(r"^\d+% of the causal matrix$", printed, re.MULTILINE)


def test_cpp(wheel_environment: WheelEnvironment, tmp_path: Path) -> None:
    (tmp_path / "main.cpp").write_text(block("Quick start: C++", "cpp"), encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(block("Quick start: C++", "cmake"), encoding="utf-8")
    commands = [text for language, text in blocks("Quick start: C++") if language == "sh"]
    assert len(commands) == 2, "one for CMake, one for pkg-config"
    for command in commands:
        printed = run(command, tmp_path, wheel_environment, "bash")
        assert printed.splitlines()[-1] == "ok", printed


@pytest.mark.slow
def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that find patterns and prove the accuracy, at sizes of a tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    text_model.save(tmp_path / "checkpoint")
    script = block("Find patterns, prove the accuracy", "sh").replace("\\\n", " ")
    smaller = {
        "DIR": "checkpoint",
        "--out patterns.json ": "--out patterns.json --length 1024 --budget 64,192 ",
        "niah,ruler": "niah,ruler:niah_single_1 --samples 1 --depths 2",
        "8192,32768": "1024",
        "--layer 12 --head 3,7": "--layer 0 --head 0,1 --length 1024",
    }
    for text, replacement in smaller.items():
        assert text in script, text
        script = script.replace(text, replacement)
    commands = [shlex.split(line, comments=True) for line in script.splitlines()]
    for program, *arguments in commands:
        assert program == "minference"
        assert cli.main(arguments) == 0, arguments
    for name in ("patterns.json", "heads.png", "report.html"):
        assert (tmp_path / name).stat().st_size > 0, name
