"""Sparse prefill against dense prefill, on a prompt with needles:  python -m minference_ext.demo

A small Llama whose weights are given by a formula (minference_ext.testing) reads one long prompt
with ten needles in it, at ten depths, and is asked for all of them. The prompt is prefilled once
per method, through Transformers; the table says how long that took, how much of the attention
matrix was computed, and what was found. Shorter prompts follow, for the pictures.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minference_ext import __version__, plots
from minference_ext._C import cpu_kernel_for
from minference_ext.benchmark.machine import cpu_model
from minference_ext.command_line import (
    DTYPES,
    STDOUT,
    Parser,
    add_json,
    add_threads,
    at_least,
    run,
    threads,
    write_json,
)
from minference_ext.plots.canvas import MISSING

from .measure import Progress, Result, measure
from .methods import METHODS, SPARSE_METHODS, head_patterns, method_patterns
from .pictures import MAP_LENGTH, crossovers, save_pictures, shorter_lengths
from .report import conclusion, results_table

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import LlamaForCausalLM

    from minference_ext.plots.attention_maps import AttentionMap
    from minference_ext.testing import RetrievalSpec

NUM_NEEDLES = 10
DEPTHS = tuple(index / (NUM_NEEDLES - 1) for index in range(NUM_NEEDLES))
PLOTS_FOLDER = Path("demo_plots")
SHORT, SHORT_REPEAT = 4096, 3  # prefills up to this length are quick, and single ones vary

DESCRIPTION = "Prefills one long prompt densely and sparsely: time, needles found, pictures."
EPILOG = """examples:
  {prog}                                  # 32K tokens; pictures in demo_plots/
  {prog} --length 8192 --repeat 3
  {prog} --method per_head --no-plots     # dense and this one
  {prog} --no-plots --json - | python -m json.tool"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; command_line.py says what the exit codes mean."""
    program = "python -m minference_ext.demo"
    parser = Parser(prog=program, description=DESCRIPTION, epilog=EPILOG.format(prog=program))
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run(program, partial(execute, parser, arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--length", type=at_least(1), default=32768, help="tokens of the prompt (default: 32768)"
    )
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME[,NAME]",
        help=f"of {', '.join(METHODS)}; may be repeated; default: all",
    )
    parser.add_argument("--no-dense", action="store_true", help="skip PyTorch's dense attention")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the model (default: bfloat16)"
    )
    parser.add_argument(
        "--repeat", type=at_least(1), default=1, help="prefills per method (default: 1)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of prompt and token codes (default: 0)"
    )
    add_threads(parser)
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument(
        "--plots",
        type=Path,
        metavar="DIR",
        help=f"folder of the pictures (default: {PLOTS_FOLDER}, if matplotlib is installed)",
    )
    pictures.add_argument("--no-plots", action="store_true", help="draw none; saves their prefills")
    add_json(parser)


def execute(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("transformers") is None:
        parser.error("the demo needs transformers: pip install 'transformers>=4.57'")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    with threads(arguments.threads), torch.inference_mode():
        return _execute(parser, arguments)


def _execute(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from minference_ext.testing import RetrievalSpec, build_retrieval_model, needles_at_depths

    spec, length = RetrievalSpec(), arguments.length
    try:
        kernel = cpu_kernel_for(arguments.dtype)
        prompt = needles_at_depths(length, DEPTHS, arguments.seed, spec=spec)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    settings = {name: method_patterns(name, spec, length) for name in _methods(parser, arguments)}
    folder = _plots_folder(parser, arguments)
    has_text = arguments.json != STDOUT

    machine = {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "kernel": kernel,
        "minference_ext": __version__,
        "torch": torch.__version__,
    }
    if has_text:
        print(
            f"{machine['cpu']}, threads: {machine['threads']}\n"
            f"minference_ext {__version__} (CPU kernel for {arguments.dtype}: {kernel}), "
            f"torch {torch.__version__}\n"
            f"Llama of {spec.num_layers} layers, {spec.num_heads} query heads, {spec.num_kv_heads} "
            f"kv heads, head_dim {spec.head_dim}; prompt of {length} tokens with {NUM_NEEDLES} "
            "needles\n",
            flush=True,
        )
    model = build_retrieval_model(spec, dtype=DTYPES[arguments.dtype], seed=arguments.seed)
    num_prefills = len(settings) * (1 + arguments.repeat)
    with Progress(spec.num_layers, num_prefills) as progress:
        results = measure(model, prompt, settings, arguments.repeat, progress)
    if has_text:
        print(f"{results_table(results)}\n\n{conclusion(results)}", flush=True)
    record = {
        "machine": machine,
        "length": length,
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        "repeat": arguments.repeat,
        "results": [result.record() for result in results],
    }
    if folder is not None:
        record |= _pictures(model, spec, arguments, results, folder, has_text)
    elif has_text and not arguments.no_plots:
        print(f"\nNo pictures: {MISSING}")
    write_json(arguments.json, record)
    return 0


def _pictures(
    model: LlamaForCausalLM,
    spec: RetrievalSpec,
    arguments: argparse.Namespace,
    results: list[Result],
    folder: Path,
    has_text: bool,
) -> dict[str, object]:
    """Measures what pictures need beyond the results, draws them, and returns what they show."""
    by_length = _shorter(model, spec, arguments, results)
    by_length[arguments.length] = results
    map_length = min(arguments.length, MAP_LENGTH)
    maps = _maps(map_length, DTYPES[arguments.dtype], arguments.seed)
    machine = f"{cpu_model()}, {arguments.dtype}, threads: {torch.get_num_threads()}"
    files = save_pictures(folder, by_length, DEPTHS, maps, map_length, machine)
    if has_text:
        print("\nPictures:")
        for path, content in files:
            print(f"  {path}  {content}")
    return {
        "shorter": [
            {"length": length, "results": [result.record() for result in of]}
            for length, of in by_length.items()
            if length != arguments.length
        ],
        "crossovers": crossovers(by_length),
        "heads": [
            {
                "layer": head.layer,
                "head": head.head,
                "role": head.role,
                "pattern": head.pattern,
                "attended_share": head.attended_share,
                "recall": head.recall,
                "recall_of_questions": head.recall_last,
            }
            for head in maps
        ],
        "pictures": [str(path) for path, _ in files],
    }


def _shorter(
    model: LlamaForCausalLM,
    spec: RetrievalSpec,
    arguments: argparse.Namespace,
    results: list[Result],
) -> dict[int, list[Result]]:
    """The same methods and patterns on shorter prompts, by length."""
    from minference_ext.testing import needles_at_depths

    settings = {
        result.method: method_patterns(result.method, spec, arguments.length) for result in results
    }
    lengths = shorter_lengths(arguments.length)
    repeats = [max(arguments.repeat, SHORT_REPEAT if length <= SHORT else 1) for length in lengths]
    num_prefills = len(settings) * sum(1 + repeat for repeat in repeats)
    by_length = {}
    with Progress(spec.num_layers, num_prefills, has_lines=False) as progress:
        for length, repeat in zip(lengths, repeats, strict=True):
            prompt = needles_at_depths(length, DEPTHS, arguments.seed, spec=spec)
            begin = time.perf_counter()
            by_length[length] = measure(model, prompt, settings, repeat, progress)
            progress.line(f"pictures, {length} tokens", time.perf_counter() - begin)
    return by_length


def _maps(length: int, dtype: torch.dtype, seed: int) -> list[AttentionMap]:
    from minference_ext.testing import (
        RetrievalSpec,
        build_retrieval_model,
        head_roles,
        needles_at_depths,
    )

    from .head_maps import head_maps

    # The same model with more filler words: where few of them repeat, as few queries as in a text
    # find their own word again, and the map of the head that looks for it can be read.
    spec = RetrievalSpec(num_keys=64, num_values=64, num_fillers=3900)
    model = build_retrieval_model(spec, dtype=dtype, seed=seed)
    prompt = needles_at_depths(length, DEPTHS, seed, spec=spec)
    return head_maps(model, prompt, head_patterns(spec, length), head_roles(spec))


def _plots_folder(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Path | None:
    """Where pictures go, made if it is missing; None: no pictures."""
    if arguments.no_plots or (arguments.plots is None and not plots.is_available()):
        return None
    if not plots.is_available():
        parser.error(f"--plots: {MISSING}")
    folder: Path = arguments.plots or PLOTS_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--plots: {folder} cannot be made a folder: {error.strerror}")
    return folder


def _methods(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    named = [name for text in arguments.method or [",".join(METHODS)] for name in text.split(",")]
    for name in named:
        if name not in METHODS:
            parser.error(f"--method: {name!r} is none of {', '.join(METHODS)}")
    sparse = [name for name in SPARSE_METHODS if name in named]
    if arguments.no_dense:
        if not sparse:
            parser.error("--no-dense leaves no method to run")
        return sparse
    return ["dense", *sparse]
