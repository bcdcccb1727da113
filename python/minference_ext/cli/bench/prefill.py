"""minference bench prefill: a model's prefill by context length, methods against PyTorch's."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from minference_ext.benchmark import prefill, published
from minference_ext.benchmark.attention import DENSE
from minference_ext.benchmark.crossover import crossovers
from minference_ext.benchmark.machine import describe
from minference_ext.benchmark.prefill import MIN_LENGTH, Row
from minference_ext.benchmark.prompts import TEXT, prompt
from minference_ext.benchmark.random_models import SHAPES, random_model
from minference_ext.command_line import (
    DTYPES,
    STDOUT,
    Failure,
    Parser,
    add_json,
    add_threads,
    at_least,
    png_file,
    threads,
    write_json,
)
from minference_ext.methods import Method, parse_list
from minference_ext.models import (
    RETRIEVAL,
    LoadedModel,
    add_model_arguments,
    check_device,
    model_from,
)
from minference_ext.plots import draw_times
from minference_ext.plots.canvas import shortened
from minference_ext.report.pictures import curves

from .prefill_tables import published_table, tables
from .report import lengths_of

RANDOM = "random"
LENGTHS = "1024,4096,16384"
METHODS = "dense,streaming_llm,vertical_slash(1000,6096)"
MLP_CHUNK = 32768
EPILOG = f"""A prefill takes a prompt's token ids to the logits of its last token, without a cache
(use_cache=False, logits_to_keep=1). Each method attends in all layers in turns with PyTorch's
attention (SDPA), one prefill of each per round, after two that do not count; a time is the median
of the rounds, a speed-up the median of their ratios. "computed" is the share of causal (query, key)
pairs that attention multiplies, over all layers; "peak" the memory beyond what there was before a
prefill, in the second of those that do not count. A crossover is the length from which on a
method's prefill is at least 5% faster than all dense ones: SDPA's, and that of "dense" if it is
among the methods.

--model {RANDOM}:SHAPE takes random weights, without a download. SHAPE is one of
  {", ".join(SHAPES)}
They show what dense parts and shapes cost, but have no lines to find: estimated patterns come out
scattered, and heads fall back to dense attention where lines cost as much. What an estimation gains
is seen with "{RETRIEVAL}" and with checkpoints. With --layers N the first N layers run alone, and
nothing is extrapolated to all of them.

A prompt is a text, repeated or cut to the length as in the published protocol, so it has strong
diagonals at its period; --text takes another one. "{RETRIEVAL}" gets keys and values with
questions, {RANDOM} models get random ids.

--breakdown runs one more prefill of each method with clocks in it: "estimate" finds lines or
blocks, "plan" lists what a head computes, "attention" computes it, "rest" is the model without
attention. Estimation and plan are timed on their own and subtracted, so attention is a difference.

examples:
  minference bench prefill --model {RETRIEVAL}
  minference bench prefill --model {RETRIEVAL} --lengths 4096,32768 --breakdown --plot prefill.png
  minference bench prefill --model {RANDOM}:llama-3-8b --layers 2 --lengths 8192 --methods dense
  minference bench prefill --model ./Llama-3.2-1B --text book.txt --json prefill.json --published"""


def add_subject(subjects: argparse._SubParsersAction[Parser]) -> None:
    subject = subjects.add_parser(
        "prefill",
        help="a model's prefill by context length, methods against PyTorch's attention",
        description="A model's prefill by context length, methods against PyTorch's attention.",
        epilog=EPILOG,
    )
    add_model_arguments(subject)
    subject.add_argument(
        "--layers",
        type=at_least(1),
        metavar="N",
        help=f"of a {RANDOM} model, so that it fits (default: all)",
    )
    subject.add_argument(
        "--lengths",
        type=lengths_of(MIN_LENGTH),
        default=LENGTHS,
        metavar="N,N",
        help=f"tokens (default: {LENGTHS})",
    )
    subject.add_argument(
        "--methods",
        type=_methods,
        default=METHODS,
        metavar="M,M",
        help=f"of `minference methods`, all in quotes (default: {METHODS})",
    )
    subject.add_argument(
        "--text",
        type=_text,
        metavar="FILE",
        help="text of the prompts, UTF-8 (default: a short one of the package)",
    )
    subject.add_argument("--rounds", type=at_least(1), default=3, help="timed runs (default: 3)")
    add_threads(subject)
    subject.add_argument(
        "--mlp-chunk",
        type=at_least(0),
        default=MLP_CHUNK,
        metavar="N",
        help=f"tokens that an MLP takes at a time; 0: all (default: {MLP_CHUNK})",
    )
    subject.add_argument(
        "--breakdown", action="store_true", help="also tell estimation, plan, attention and rest"
    )
    subject.add_argument(
        "--published",
        action="store_true",
        help="also print the times that MInference's authors published, of another machine",
    )
    subject.add_argument("--plot", type=png_file, metavar="FILE.png", help="draw the times there")
    add_json(subject)
    subject.set_defaults(command=partial(_prefill, subject))


def _methods(text: str) -> list[Method]:
    try:
        return list({str(method): method for method in parse_list(text)}.values())
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _text(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{path} is empty")
    return text


# ---- The model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """What is measured."""

    loaded: LoadedModel
    num_layers: int
    whole_num_layers: int  #: of the model, of which `num_layers` run

    def describe(self, dtype: str) -> str:
        config = self.loaded.model.config.get_text_config()
        part = "" if self.num_layers == self.whole_num_layers else f" of {self.whole_num_layers}"
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return (
            f"{self.loaded.name}: {self.num_layers}{part} layers, "
            f"{config.num_attention_heads} query heads, {kv_heads} kv heads, {dtype}"
        )


def _load(parser: Parser, arguments: argparse.Namespace) -> _Subject:
    family, _, name = arguments.model.partition(":")
    if arguments.text is not None and family in (RETRIEVAL, RANDOM):
        parser.error(f"--text needs a model with a tokenizer; --model is {arguments.model}")
    if family != RANDOM:
        if arguments.layers is not None:
            parser.error(f"--layers is for {RANDOM} models; --model is {arguments.model}")
        loaded = model_from(arguments)
        num_layers = int(loaded.model.config.get_text_config().num_hidden_layers)
        return _Subject(loaded, num_layers, num_layers)
    if name not in SHAPES:
        parser.error(
            f"--model is {arguments.model}; it must be {RANDOM}: and one of {', '.join(SHAPES)}"
        )
    shape = SHAPES[name]
    num_layers = arguments.layers or shape.num_layers
    if num_layers > shape.num_layers:
        parser.error(f"--layers is {num_layers}; {arguments.model} has {shape.num_layers}")
    check_device(arguments.device)
    dtype, device = DTYPES[arguments.dtype], arguments.device
    try:
        model = random_model(shape, num_layers, dtype=dtype, device=device)
    except ImportError as error:
        raise Failure('models need transformers: pip install "transformers>=4.57"') from error
    except (RuntimeError, MemoryError) as error:
        raise Failure(f"--model {arguments.model}: {_first_line(error)}") from error
    return _Subject(LoadedModel(arguments.model, model, None, None), num_layers, shape.num_layers)


def _check_lengths(subject: _Subject, lengths: list[int]) -> None:
    config = subject.loaded.model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and lengths[-1] > positions:
        raise Failure(
            f"--lengths has {lengths[-1]}; {subject.loaded.name} takes at most {positions} tokens"
        )


# ---- Measuring -----------------------------------------------------------------------------------


def _prefill(parser: Parser, arguments: argparse.Namespace) -> int:
    with threads(arguments.threads):
        subject = _load(parser, arguments)
        _check_lengths(subject, arguments.lengths)
        try:
            machine = describe(arguments.device)
        except ValueError as error:  # the environment asks for a kernel that there is not
            raise Failure(_first_line(error)) from error
        mlp_chunk = arguments.mlp_chunk or None
        with prefill.chunked_mlps(subject.loaded.model, mlp_chunk) as is_chunked:
            rows: list[Row] = []
            try:
                _measure(subject, arguments, rows)
            finally:  # what was measured counts also where it ends early
                _report(subject, arguments, machine, mlp_chunk if is_chunked else None, rows)
    return 0


def _measure(subject: _Subject, arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Adds the rows of each length to `rows` when it is done."""
    text = TEXT if arguments.text is None else arguments.text
    status = _Status()
    measuring = prefill.measure(
        subject.loaded.model,
        arguments.methods,
        arguments.lengths,
        partial(prompt, subject.loaded, text=text),
        rounds=arguments.rounds,
        has_breakdown=arguments.breakdown,
        begin=status.show,
    )
    try:
        with closing(measuring):
            for of_length in measuring:
                rows += of_length
                status.clear()
                print(f"measured: {of_length[0].length} tokens", file=sys.stderr, flush=True)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise Failure(_failure(status.text, error)) from error
    finally:
        status.clear()


class _Status:
    """What runs now: a line on a terminal, which the next one replaces."""

    def __init__(self) -> None:
        self.text = ""

    def show(self, text: str) -> None:
        self.text = text
        self._write(text)

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _failure(what: str, error: Exception) -> str:
    is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )
    if is_memory:
        return (
            f"{what}: not enough memory ({_first_line(error)}); take shorter --lengths, a lower "
            "--mlp-chunk or a smaller model"
        )
    return f"{what}: {_first_line(error)}"


# ---- Output --------------------------------------------------------------------------------------


def _report(
    subject: _Subject,
    arguments: argparse.Namespace,
    machine: dict[str, object],
    mlp_chunk: int | None,
    rows: list[Row],
) -> None:
    if not rows:
        return
    points = crossovers(rows, DENSE)
    title = subject.describe(arguments.dtype)
    kernel = f"threads: {machine['threads']}, kernel: {machine['kernel']}"
    where = str(machine["gpu"]) if "gpu" in machine else f"{machine['cpu']}, {kernel}"
    if arguments.json != STDOUT:
        print(f"{where}, torch {machine['torch']}\n{title}\n")
        print(tables(rows, points))
        if arguments.published:
            print(f"\n{published_table()}")
    if arguments.plot is not None:
        drawn = f"Time of a prefill: {shortened(title, 90)}\n{shortened(where, 110)}"
        draw_times(arguments.plot, curves(rows, points), drawn)
        if arguments.json != STDOUT:
            print(f"\nPicture: {arguments.plot}")
    record = {
        "format": "minference_prefill",
        "version": 1,
        "model": subject.loaded.name,
        "num_layers": subject.num_layers,
        "whole_num_layers": subject.whole_num_layers,
        "machine": machine,
        "rounds": arguments.rounds,
        "dtype": arguments.dtype,
        "mlp_chunk": mlp_chunk,
        "is_complete": rows[-1].length == arguments.lengths[-1],
        "rows": [asdict(row) for row in rows],
        "crossovers": points,
    }
    if arguments.published:
        record["published"] = published.record()
    write_json(arguments.json, record)
