"""Models for the command line: a folder with a checkpoint, or the built-in retrieval model.

"retrieval" is the model of `minference_ext.testing`, which needs no download; "retrieval:8" follows
8 hops. Everything else is what `AutoModelForCausalLM.from_pretrained` takes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .command_line import DTYPES, Failure

if TYPE_CHECKING:  # it needs transformers
    from transformers import PreTrainedModel

    from .testing import RetrievalSpec

RETRIEVAL = "retrieval"


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in eval mode without gradients, and what prompts are made with."""

    name: str  #: as it was asked for
    model: PreTrainedModel
    tokenizer: Any  #: of Transformers; None: the retrieval model has none
    spec: RetrievalSpec | None  #: of the retrieval model


def load_model(
    name: str, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu"
) -> LoadedModel:
    """Loads a model with PyTorch's attention.

    Args:
        name: a folder, a name that Transformers can load, "retrieval", or "retrieval:HOPS".

    Raises:
        Failure: there is no such model, in a sentence.
    """
    try:
        import transformers
    except ImportError as error:
        raise Failure('models need transformers: pip install "transformers>=4.57"') from error
    family, _, hops = name.partition(":")
    if family == RETRIEVAL:
        return _retrieval_model(name, hops, dtype, device)
    if not Path(name).exists() and name.startswith((".", "/", "~")):
        raise Failure(f"--model: there is no folder {name}")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, attn_implementation="sdpa"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise Failure(
            f"--model {name}: {first_line} (give a folder with a checkpoint and its tokenizer, or "
            f'"{RETRIEVAL}" for the built-in retrieval model)'
        ) from error
    model.requires_grad_(False)
    return LoadedModel(name, model.eval().to(device), tokenizer, None)


def _retrieval_model(name: str, hops: str, dtype: torch.dtype, device: str) -> LoadedModel:
    from .testing import RetrievalSpec, build_retrieval_model

    if ":" in name and not (hops.isdecimal() and int(hops) >= 1):
        raise Failure(f"--model {name}: the hops must be a whole number >= 1, as in {RETRIEVAL}:8")
    spec = RetrievalSpec(hops=int(hops or 1))
    model = build_retrieval_model(spec, dtype=dtype)
    return LoadedModel(name, model.to(device), None, spec)  # type: ignore[arg-type]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help=f'folder or name of a causal LM of Transformers; "{RETRIEVAL}": a small built-in '
        f'model whose answers are known, "{RETRIEVAL}:8": one that follows 8 hops',
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu, or cuda on an NVIDIA GPU (default: cpu)",
    )


def model_from(arguments: argparse.Namespace) -> LoadedModel:
    """The model that `add_model_arguments` asked for."""
    device = str(arguments.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise Failure(f"--device is {device}; this PyTorch finds no NVIDIA GPU")
    return load_model(arguments.model, dtype=DTYPES[arguments.dtype], device=device)
