"""Models for the command line: a folder with a checkpoint, or the built-in retrieval model.

"retrieval" is the model of `minference_ext.testing`, which needs no download; "retrieval:8" follows
8 hops. Everything else is what `AutoModelForCausalLM.from_pretrained` takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .command_line import DTYPES, Failure

if TYPE_CHECKING:  # it needs transformers
    from transformers import PreTrainedModel

    from .testing import RetrievalSpec

RETRIEVAL = "retrieval"
_FIRST_CHARACTERS = 8  # per token, for the first cut of a text


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
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        Failure: there is no such model or device, or the checkpoint is damaged or lacks weights, in
            a sentence.
    """
    check_device(device)
    if importlib.util.find_spec("transformers") is None:
        raise Failure('models need transformers: pip install "transformers>=4.57"')
    family, _, hops = name.partition(":")
    if family == RETRIEVAL:
        return _retrieval_model(name, hops, dtype, device)
    path = Path(name)
    if path.is_file():
        raise Failure(f"--model: {name} is a file; give the folder that it is in")
    if not path.exists() and name.startswith((".", "/", "~")):
        raise Failure(f"--model: there is no folder {name}")
    model = _checkpoint(name, dtype)
    tokenizer = _tokenizer(name)
    model.requires_grad_(False)
    return LoadedModel(name, model.eval().to(device), tokenizer, None)


def _checkpoint(name: str, dtype: torch.dtype) -> Any:
    import transformers

    load: Any = transformers.AutoModelForCausalLM.from_pretrained  # whose type knows one result
    try:
        model, loading = load(
            name,
            dtype=dtype,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,  # they are refused below
            output_loading_info=True,
        )
    except Exception as error:  # files of others, and parsers for them: anything may fail
        raise Failure(
            f"--model {name}: {_first_line(error)} (give a folder with a checkpoint and its "
            f'tokenizer, or "{RETRIEVAL}" for the built-in retrieval model)'
        ) from error
    # Mismatched ones stand with their shapes, in older versions alone.
    mismatched = [key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"]]
    random = {*loading["missing_keys"], *mismatched}
    if random:
        raise Failure(
            f"--model {name}: the checkpoint lacks {min(random)}, or has it in another shape than "
            f"a {type(model).__name__}; {len(random)} such weights would be random"
        )
    return model


def _tokenizer(name: str) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(name)
    except Exception as error:  # as above
        raise Failure(
            f"--model {name}: its tokenizer cannot be loaded: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].rstrip(" :")
    is_sentence = isinstance(error, OSError | ValueError | ImportError)
    return text if is_sentence else f"{type(error).__name__}: {text}"


def _retrieval_model(name: str, hops: str, dtype: torch.dtype, device: str) -> LoadedModel:
    from .testing import RetrievalSpec, build_retrieval_model

    if ":" in name and not (hops.isdecimal() and int(hops) >= 1):
        raise Failure(f"--model {name}: the hops must be a whole number >= 1, as in {RETRIEVAL}:8")
    spec = RetrievalSpec(hops=int(hops or 1))
    model = build_retrieval_model(spec, dtype=dtype)
    return LoadedModel(name, model.to(device), None, spec)  # type: ignore[arg-type]


# ---- The command line ----------------------------------------------------------------------------


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
    """The model that `add_model_arguments` asked for. Transformers is quiet from then on."""
    _quiet_transformers()
    return load_model(arguments.model, dtype=DTYPES[arguments.dtype], device=str(arguments.device))


def check_device(name: str) -> None:
    """Raises Failure where the ops do not run on such a device, or it is not there."""
    try:
        device = torch.device(name)
        is_known = device.type in ("cpu", "cuda")
    except RuntimeError:
        is_known = False
    if not is_known:
        raise Failure(f"--device is {name}; it must be cpu, cuda or, of several GPUs, cuda:1")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Failure(f"--device is {name}; this PyTorch finds no NVIDIA GPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Failure(f"--device is {name}; GPUs here end at cuda:{torch.cuda.device_count() - 1}")


def _quiet_transformers() -> None:
    """Errors alone, and bars on a terminal only."""
    if importlib.util.find_spec("transformers") is None:
        return  # which loading the model says in a sentence
    from transformers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def warn_of_length(loaded: LoadedModel, length: int) -> None:
    """Says on stderr where prompts are longer than the model or its layers attend."""
    config = loaded.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        print(
            f"warning: prompts have {length} tokens; the model's config says that it is made for "
            f"{positions}",
            file=sys.stderr,
        )
    others = layers_with_window(loaded, length)
    if others:
        print(
            f"warning: {others} of {config.num_hidden_layers} layers attend a sliding window "
            f"shorter than {length} tokens whatever the method or pattern",
            file=sys.stderr,
        )


def layers_with_window(loaded: LoadedModel, length: int) -> int:
    """How many layers have a sliding window that hides keys of a prompt of that many tokens."""
    config = loaded.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None or window >= length:
        return 0
    kinds = getattr(config, "layer_types", None)
    return Counter(kinds)["sliding_attention"] if kinds else int(config.num_hidden_layers)


# ---- Texts ---------------------------------------------------------------------------------------


def first_tokens(tokenizer: Any, text: str, count: int) -> list[int]:
    """The first `count` tokens of a text, or all of them, without reading all of a long one."""
    characters = _FIRST_CHARACTERS * count
    while True:
        # Some tokenizers warn of texts beyond the model's length.
        ids: list[int] = tokenizer(text[:characters], verbose=False)["input_ids"]
        # The last token of a cut text may be another one than in the whole.
        if len(ids) > count or characters >= len(text):
            return ids[:count]
        characters *= 2
