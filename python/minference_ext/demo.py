"""Sparse prefill against dense prefill, on a prompt with needles:  python -m minference_ext.demo

A small Llama whose weights are given by a formula (minference_ext.testing) reads one long prompt
with ten needles in it, at ten depths, and is asked for all of them. The prompt is prefilled once
per method, through Transformers; the table says how long that took, how much of the attention
matrix was computed, and what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _C, __version__
from .patterns import HeadPattern, PlanStats

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import LlamaForCausalLM

    from .testing import RetrievalPrompt, RetrievalSpec

NUM_NEEDLES = 10
FULL_LENGTH = 32768  # from here on patterns have the sizes of the MInference paper
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SPARSE_METHODS = ("a_shape", "vertical_slash", "per_head")
METHODS = ("dense", *SPARSE_METHODS)

_Patterns = HeadPattern | list[list[HeadPattern]]


@dataclass
class Result:
    """What one method did; the baseline is PyTorch's dense attention."""

    method: str
    description: str
    seconds: list[float] = field(default_factory=list)  #: of each prefill
    attention_seconds: list[float] = field(default_factory=list)  #: attention alone, likewise
    computed_share: float = 1.0  #: pairs multiplied / pairs of the causal matrix
    attended_share: float = 1.0  #: pairs that enter a softmax, likewise
    dense_heads: int | None = None  #: heads computed densely, by the cost model; None: not sparse
    num_heads: int = 0  #: of all layers
    retrieved: list[bool] = field(default_factory=list)  #: by depth
    max_logit_difference: float | None = None  #: to the baseline, at the asked positions
    speedup: float | None = None  #: of the prefill over the baseline's
    attention_speedup: float | None = None  #: of attention alone, likewise

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_attention_seconds(self) -> float:
        return statistics.median(self.attention_seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo. Exit codes: 0, 2 for arguments that make no sense, 130 after Ctrl-C."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        import transformers
    except ImportError:
        parser.error("the demo needs transformers: pip install 'transformers>=4.57'")
    transformers.utils.logging.set_verbosity_error()
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(arguments.threads or threads_before)
        with torch.inference_mode():
            return _run(parser, arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads_before)


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from .testing import RetrievalSpec, build_retrieval_model, needles_at_depths

    spec = RetrievalSpec()
    depths = [index / (NUM_NEEDLES - 1) for index in range(NUM_NEEDLES)]
    try:
        kernel = _C.cpu_kernel_for(arguments.dtype)
        prompt = needles_at_depths(arguments.length, depths, arguments.seed, spec=spec)
    except (RuntimeError, ValueError) as error:
        parser.error(str(error))
    methods = _methods(parser, arguments)
    if arguments.json is not None and not arguments.json.parent.is_dir():
        parser.error(f"--json: {arguments.json.parent} is not a folder")

    machine = {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "kernel": kernel,
        "minference_ext": __version__,
        "torch": torch.__version__,
    }
    print(
        f"{machine['cpu']}, threads: {machine['threads']}\n"
        f"minference_ext {__version__} (CPU kernel for {arguments.dtype}: {kernel}), "
        f"torch {torch.__version__}\n"
        f"Llama of {spec.num_layers} layers, {spec.num_heads} query heads, {spec.num_kv_heads} kv "
        f"heads, head_dim {spec.head_dim}; prompt of {arguments.length} tokens with {NUM_NEEDLES} "
        "needles\n",
        flush=True,
    )
    model = build_retrieval_model(spec, dtype=DTYPES[arguments.dtype], seed=arguments.seed)
    results = _measure(model, spec, prompt, methods, arguments.repeat)

    print(_table(results))
    print()
    print(_conclusion(results))
    if arguments.json is not None:
        _write_json(arguments, machine, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minference_ext.demo",
        description="Prefills one long prompt densely and sparsely: time, and needles found.",
    )
    parser.add_argument(
        "--length", type=_at_least(1), default=32768, help="tokens of the prompt (default: 32768)"
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
        "--repeat", type=_at_least(1), default=1, help="prefills per method (default: 1)"
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="of prompt and token codes (default: 0)"
    )
    parser.add_argument("--threads", type=_at_least(1), help="default: PyTorch's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    return parser


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {minimum}")
        return value

    return number


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


# ---- Measuring -----------------------------------------------------------------------------------


class _Clock:
    """Adds up the time spent in attention functions of Transformers."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def around(self, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
        """Within it, the functions registered under these names are timed."""
        from transformers import AttentionInterface

        try:
            for name, function in functions.items():
                AttentionInterface.register(name, self._timed(function))
            yield
        finally:
            for name, function in functions.items():
                AttentionInterface.register(name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - begin
            return result

        return timed


class _Progress:
    """Layers done: a bar on a terminal, else a line per prefill."""

    def __init__(self, num_layers: int, num_prefills: int) -> None:
        from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

        self.is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_layers * num_prefills,
            unit="layer",
            leave=False,
            disable=not self.is_terminal,
            bar_format="{desc:<30}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} layers, {elapsed}",
        )

    @contextmanager
    def prefill(self, model: LlamaForCausalLM, name: str) -> Iterator[None]:
        def layer_done(*_: object) -> None:  # what a hook returns would replace the layer's output
            self._bar.update(1)

        self._bar.set_description_str(name)
        hooks = [layer.register_forward_hook(layer_done) for layer in model.model.layers]
        begin = time.perf_counter()
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if not self.is_terminal:
            print(f"{name}: {time.perf_counter() - begin:.2f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _measure(
    model: LlamaForCausalLM,
    spec: RetrievalSpec,
    prompt: RetrievalPrompt,
    methods: list[str],
    repeat: int,
) -> list[Result]:
    """Methods take turns, so that a load on the machine that comes and goes meets all alike."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from . import transformers as minference_transformers
    from .testing import answer_logits, retrieved

    def select(patterns: _Patterns | None) -> None:
        if patterns is None:
            model.set_attn_implementation("sdpa")
        else:
            minference_transformers.configure(model, patterns)  # switches to "minference"

    clock = _Clock()
    attention_functions: dict[str, Callable[..., Any]] = {
        "sdpa": sdpa_attention_forward,
        minference_transformers.NAME: minference_transformers.attention,
    }
    length = prompt.input_ids.shape[1]
    settings = {name: _patterns(name, spec, length) for name in methods}
    results = {name: Result(name, _description(name, settings[name])) for name in methods}
    logits: dict[str, Tensor] = {}
    num_prefills = len(methods) * (1 + repeat)
    with _Progress(spec.num_layers, num_prefills) as progress, clock.around(attention_functions):
        for name, patterns in settings.items():
            select(patterns)
            with progress.prefill(model, f"{name}, warm-up"):
                if patterns is None:
                    answer_logits(model, prompt)
                else:
                    with minference_transformers.record_plans(model) as plans:
                        answer_logits(model, prompt)
                    _add_stats(results[name], [plan.stats for plan in plans])
        for turn in range(repeat):
            for name, patterns in settings.items():
                select(patterns)
                clock.seconds = 0.0
                with progress.prefill(model, f"{name}, prefill {turn + 1} of {repeat}"):
                    begin = time.perf_counter()
                    logits[name] = answer_logits(model, prompt)
                    results[name].seconds.append(time.perf_counter() - begin)
                results[name].attention_seconds.append(clock.seconds)

    for name, result in results.items():
        result.retrieved = retrieved(logits[name], prompt)
        dense = results.get("dense")
        if dense is not None:
            difference = logits[name].float() - logits["dense"].float()
            result.max_logit_difference = float(difference.abs().max())
            result.speedup = dense.median_seconds / result.median_seconds
            result.attention_speedup = (
                dense.median_attention_seconds / result.median_attention_seconds
            )
    return list(results.values())


def _patterns(method: str, spec: RetrievalSpec, length: int) -> _Patterns | None:
    """None: PyTorch's dense attention."""
    from .testing import default_patterns

    def scaled(size: int) -> int:
        return max(1, size * min(length, FULL_LENGTH) // FULL_LENGTH)

    if method == "a_shape":
        return HeadPattern.a_shape(scaled(1024), scaled(4096))
    if method == "vertical_slash":
        return HeadPattern.vertical_slash(scaled(1000), scaled(6096))
    if method == "per_head":
        return default_patterns(spec)
    return None


def _description(method: str, patterns: _Patterns | None) -> str:
    if patterns is None:
        return "PyTorch SDPA"
    if not isinstance(patterns, HeadPattern):
        num_patterns = len({pattern for row in patterns for pattern in row})
        return f"{num_patterns} patterns, by role of head"
    first, second = patterns.sizes
    if method == "a_shape":
        return f"sink {first}, window {second}"
    return f"{first} columns, {second} diagonals"


def _add_stats(result: Result, layers: list[PlanStats]) -> None:
    causal = sum(int(stats.causal_pairs.sum()) for stats in layers)
    computed = sum(int(stats.computed_pairs.sum()) for stats in layers)
    result.computed_share = computed / causal
    result.attended_share = sum(int(stats.attended_pairs.sum()) for stats in layers) / causal
    result.dense_heads = sum(int(stats.is_dense.sum()) for stats in layers)
    result.num_heads = sum(stats.is_dense.numel() for stats in layers)


def _cpu_name() -> str:
    """The model's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---- Reporting -----------------------------------------------------------------------------------


def _table(results: list[Result]) -> str:
    head = ("method", "pattern", "prefill", "speed-up", "attention", "speed-up")
    rows = [(*head, "computed", "dense heads", "retrieved", "max |Δ logit|")]
    for result in results:
        is_sparse = result.dense_heads is not None
        difference = result.max_logit_difference
        rows.append(
            (
                result.method,
                result.description,
                f"{result.median_seconds:.3g} s",
                _times(result.speedup),
                f"{result.median_attention_seconds:.3g} s",
                _times(result.attention_speedup),
                # The last tile of a dense row reaches beyond the diagonal.
                f"{min(1.0, result.computed_share):.1%}",
                f"{result.dense_heads}/{result.num_heads}" if is_sparse else "-",
                f"{sum(result.retrieved)}/{len(result.retrieved)}",
                "-" if difference is None or not is_sparse else f"{difference:.4g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _times(factor: float | None) -> str:
    return "-" if factor is None else f"{factor:.2f}x"


def _conclusion(results: list[Result]) -> str:
    sentences = []
    for result in results:
        if result.dense_heads is None:
            continue
        if result.dense_heads == result.num_heads:
            sentences.append(f"{result.method}: at this length dense is cheaper in every head.")
            continue
        asked, found = len(result.retrieved), sum(result.retrieved)
        needles = f"finds all {asked}" if found == asked else f"finds {found} of {asked}"
        how = f"computing {min(1.0, result.computed_share):.0%} of the attention matrix"
        if result.attention_speedup is not None:
            how += f", at {result.attention_speedup:.2f} times the speed of dense attention"
        sentences.append(f"{result.method} {needles} needles {how}.")
    return "\n".join(sentences) or "Dense attention is the baseline: name a sparse method, too."


def _write_json(
    arguments: argparse.Namespace, machine: dict[str, object], results: list[Result]
) -> None:
    record = {
        "machine": machine,
        "length": arguments.length,
        "dtype": arguments.dtype,
        "seed": arguments.seed,
        "repeat": arguments.repeat,
        "results": [
            {
                **vars(result),
                "median_seconds": result.median_seconds,
                "median_attention_seconds": result.median_attention_seconds,
            }
            for result in results
        ],
    }
    arguments.json.write_text(json.dumps(record, indent=2) + os.linesep, encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
