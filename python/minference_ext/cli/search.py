"""minference search and minference compare: find the pattern of every head, and hold files of
patterns against each other."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from minference_ext.command_line import (
    STDOUT,
    Failure,
    Parser,
    add_json,
    add_threads,
    at_least,
    output_file,
    table,
    threads,
    write_json,
)
from minference_ext.model_patterns import ModelPatterns
from minference_ext.models import (
    LoadedModel,
    add_model_arguments,
    layers_with_window,
    model_from,
    warn_of_length,
)
from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern
from minference_ext.search import (
    CANDIDATES,
    Comparison,
    Prompt,
    SearchResult,
    SearchSettings,
    compare_patterns,
    key_value_prompts,
    search_patterns,
    text_prompts,
)
from minference_ext.search.search import OnLayer

LENGTH = 30000
HELD_OUT_SEED = 1000
MAX_HEADS_SHOWN = 64

SEARCH_EPILOG = """Objective output, the paper's algorithm 1: every candidate is brought to the cost
of a_shape(SINK,WINDOW) on the prompt, then the least error of the attention output wins; among
equals a_shape, which needs no estimation, or vertical_slash if few lines hold the head's
probability. Objective upstream is what the code of microsoft/MInference runs: recall of token-level
masks, not at equal cost.

The prompt is key-value retrieval, made on the spot, or the beginning of each file of --text. Every
finished layer is kept in OUT.progress.json: the same command goes on from there.

Written are OUT and, with all that was measured, OUT's name with .search.json.

examples:
  minference search --model retrieval --length 4096 --budget 128,512 --out patterns.json
  minference search --model /models/Qwen2.5-7B-Instruct --out patterns.json
  minference search --model DIR --out patterns.json --text book.txt --refine 0.95
  minference search --model DIR --out upstream.json --objective upstream --format upstream"""

COMPARE_EPILOG = """All files run on the same prompt: its errors are those of the attention output
against dense attention. By default the prompt is one that `minference search` does not calibrate
on. With --equal-cost every head of the other files is brought to what the same head of the first
file costs, so that shapes are compared and not sizes.

examples:
  minference compare patterns.json upstream.json --model retrieval --length 4096
  minference compare patterns.json upstream.json --model DIR --equal-cost --json errors.json"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    _add_search(commands)
    _add_compare(commands)


def _add_search(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "search",
        help="find the pattern of every head of a model",
        description="Finds the pattern of every head of a model on a prompt, offline.",
        epilog=SEARCH_EPILOG,
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="OUT", help="file of the patterns"
    )
    _add_prompt_arguments(parser, seed=0)
    parser.add_argument(
        "--budget",
        type=_two_sizes,
        metavar="SINK,WINDOW",
        help="a_shape whose cost every candidate has (default: "
        f"{SearchSettings.sink},{SearchSettings.window})",
    )
    parser.add_argument(
        "--objective", choices=("output", "upstream"), default="output", help="default: output"
    )
    parser.add_argument(
        "--cost",
        choices=("tiles", "time"),
        help="what is made equal: multiplied tiles, or measured time, which differs from run to "
        "run (default: tiles)",
    )
    _add_step(parser)
    parser.add_argument(
        "--refine",
        type=_recall,
        metavar="RECALL",
        help="enlarge the patterns of heads that keep less of the probability, as Qwen2.5-1M does",
    )
    parser.add_argument(
        "--refine-step",
        type=_two_sizes,
        metavar="V,S",
        help="columns and diagonals that each of its rounds adds (default: 2048,4096)",
    )
    parser.add_argument(
        "--format",
        choices=("minference", "upstream"),
        default="minference",
        help="of OUT; upstream is that of microsoft/MInference, which has no block_sparse but with "
        "100 blocks, so objective output leaves it out (default: minference)",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="fail if there is no progress to go on from"
    )
    start.add_argument("--restart", action="store_true", help="discard the progress of a search")
    parser.set_defaults(command=partial(_search, parser))


def _add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "compare",
        help="errors of pattern files on a prompt they were not found on",
        description="What the patterns of files lose on the same prompt, head by head.",
        epilog=COMPARE_EPILOG,
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="files of patterns, or names of published ones"
    )
    add_model_arguments(parser)
    _add_prompt_arguments(parser, seed=HELD_OUT_SEED)
    parser.add_argument(
        "--equal-cost", action="store_true", help="bring all to the cost of the first, per head"
    )
    _add_step(parser)
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where published files are on this machine"
    )
    add_json(parser)
    parser.set_defaults(command=partial(_compare, parser))


def _add_prompt_arguments(parser: Parser, seed: int) -> None:
    parser.add_argument(
        "--length",
        type=at_least(64),
        default=LENGTH,
        metavar="N",
        help=f"tokens of each prompt (default: {LENGTH})",
    )
    parser.add_argument(
        "--samples", type=at_least(1), metavar="N", help="prompts of key-value pairs (default: 1)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=seed, help=f"of the first prompt (default: {seed})"
    )
    parser.add_argument(
        "--text", type=_file, nargs="+", metavar="FILE", help="prompts of your own, one per file"
    )
    add_threads(parser)


def _add_step(parser: Parser) -> None:
    parser.add_argument(
        "--step",
        type=at_least(1),
        metavar="N",
        help="lines by which sizes change on the way to equal cost; smaller for short prompts "
        f"(default: {SearchSettings.step}, as in the paper)",
    )


def _file(text: str) -> Path:
    path = Path(text)
    if not path.exists() or path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def _two_sizes(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not two whole numbers, as in 1024,4096")
    first, second = map(int, parts)
    if first + second == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: one of the two must be > 0")
    return first, second


def _recall(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


# ---- What both do --------------------------------------------------------------------------------


@contextmanager
def _sentences() -> Iterator[None]:
    """What the search refuses, as a failure of the command."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        raise Failure(str(error)) from error


def _check_samples(parser: Parser, arguments: argparse.Namespace) -> None:
    if arguments.text and arguments.samples is not None:
        parser.error("--samples counts prompts of key-value pairs; --text has one prompt per file")


def _refuse_unread(
    parser: Parser, arguments: argparse.Namespace, options: Sequence[str], readers: str
) -> None:
    """Refuses options that were given and would do nothing."""
    for option in options:
        if getattr(arguments, option.removeprefix("--").replace("-", "_")) is not None:
            parser.error(f"{option} is for {readers}")


def _prompts(arguments: argparse.Namespace, loaded: LoadedModel) -> list[Prompt]:
    warn_of_length(loaded, arguments.length)
    if arguments.text:
        return text_prompts(loaded, arguments.length, arguments.text)
    return key_value_prompts(loaded, arguments.length, arguments.samples or 1, arguments.seed)


@contextmanager
def _progress(loaded: LoadedModel, num_prompts: int) -> Iterator[OnLayer]:
    """Layers done: a bar on a terminal, else a line per layer, on stderr."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with transformers

    num_layers = loaded.model.config.get_text_config().num_hidden_layers
    is_terminal = sys.stderr.isatty()
    begin = time.perf_counter()
    with tqdm(total=num_layers * num_prompts, unit="layer", disable=not is_terminal) as bar:

        def on_layer(prompt: int, layer: int) -> None:
            bar.n = prompt * num_layers + layer + 1
            bar.refresh()
            if not is_terminal:
                print(
                    f"prompt {prompt + 1} of {num_prompts}, layer {layer + 1} of {num_layers}: "
                    f"{time.perf_counter() - begin:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )

        yield on_layer


# ---- search --------------------------------------------------------------------------------------


def _search(parser: Parser, arguments: argparse.Namespace) -> int:
    _check_samples(parser, arguments)
    if arguments.objective == "upstream":
        options = ("--budget", "--cost", "--step")
        _refuse_unread(parser, arguments, options, "--objective output")
    if arguments.refine is None:
        _refuse_unread(parser, arguments, ("--refine-step",), "--refine")
    progress = arguments.out.with_name(f"{arguments.out.name}.progress.json")
    if arguments.resume and not progress.exists():
        raise Failure(f"--resume: there is no {progress}")
    with _sentences():
        settings = _settings(arguments)
        settings.check_length(arguments.length)
        loaded = model_from(arguments)
        if arguments.format == "upstream" and _has_layers_of_other_kinds(loaded, arguments.length):
            raise Failure(
                "--format upstream has no pattern for the layers of this model with a sliding "
                "window or without attention; use --format minference"
            )
        prompts = _prompts(arguments, loaded)
        if arguments.restart:
            progress.unlink(missing_ok=True)
        try:
            with threads(arguments.threads), _progress(loaded, len(prompts)) as on_layer:
                result = search_patterns(
                    loaded.model,
                    prompts,
                    settings,
                    name=loaded.name,
                    progress=progress,
                    on_layer=on_layer,
                )
        except KeyboardInterrupt:
            if progress.exists():
                print(
                    f"\nfinished layers are in {progress}: the same command goes on from there, "
                    "with --restart it begins anew",
                    file=sys.stderr,
                )
            raise
        record = result.save(arguments.out, format=arguments.format)
    progress.unlink(missing_ok=True)
    print(f"{_result_text(result)}\n\npatterns: {arguments.out}\nrecord: {record}")
    return 0


def _settings(arguments: argparse.Namespace) -> SearchSettings:
    candidates: tuple[HeadPattern, ...] = CANDIDATES
    if arguments.format == "upstream":
        candidates = tuple(one for one in CANDIDATES if one.kind != "block_sparse")
    sink, window = arguments.budget or (SearchSettings.sink, SearchSettings.window)
    return SearchSettings(
        objective=arguments.objective,
        sink=sink,
        window=window,
        candidates=candidates,
        cost=arguments.cost or SearchSettings.cost,
        step=arguments.step or SearchSettings.step,
        refine=arguments.refine,
        refine_step=arguments.refine_step or SearchSettings.refine_step,
    )


def _has_layers_of_other_kinds(loaded: LoadedModel, length: int) -> bool:
    """Whether the model has layers that attend a sliding window, or nothing."""
    kinds = getattr(loaded.model.config.get_text_config(), "layer_types", None) or ()
    are_attention = set(kinds) <= {"full_attention", "sliding_attention", "attention"}
    return not are_attention or layers_with_window(loaded, length) > 0


def _result_text(result: SearchResult) -> str:
    heads = [
        (layer, head, one) for layer, of in enumerate(result.layers) for head, one in enumerate(of)
    ]
    if len(heads) > MAX_HEADS_SHOWN:
        counts = Counter(pattern_text(one.pattern) for _, _, one in heads).most_common()
        counted = [("pattern", "heads"), *((name, str(count)) for name, count in counts)]
        return f"{table(counted)}\n\n{_means_text(result)}"
    rows = [("layer", "head", "pattern", "error", "recall", "computed", "why")]
    rows += [
        (
            str(layer),
            str(head),
            pattern_text(one.pattern),
            f"{one.error:.2g}",
            f"{one.recall:.4f}",
            f"{one.computed_share:.1%}",
            one.reason,
        )
        for layer, head, one in heads
    ]
    return _left_last(rows, num_left=3)


def _means_text(result: SearchResult) -> str:
    searched = [one for heads in result.layers for one in heads if one.candidates]
    error, recall, share = (
        statistics.fmean(getattr(one, name) for one in searched)
        for name in ("error", "recall", "computed_share")
    )
    return (
        f"means of {len(searched)} heads that were searched: error {error:.2g}, recall "
        f"{recall:.4f}, computed {share:.1%}"
    )


def _left_last(rows: Sequence[tuple[str, ...]], num_left: int) -> str:
    """A table whose last column is text."""
    width = max(len(row[-1]) for row in rows)
    return table([(*row[:-1], row[-1].ljust(width)) for row in rows], num_left=num_left)


# ---- compare -------------------------------------------------------------------------------------


def _compare(parser: Parser, arguments: argparse.Namespace) -> int:
    _check_samples(parser, arguments)
    if not arguments.equal_cost:
        _refuse_unread(parser, arguments, ("--step",), "--equal-cost")
    with _sentences():
        files = [
            (name, ModelPatterns.load(name, folder=arguments.folder)) for name in arguments.files
        ]
        loaded = model_from(arguments)
        prompts = _prompts(arguments, loaded)
        with threads(arguments.threads), _progress(loaded, len(prompts)) as on_layer:
            found = compare_patterns(
                loaded.model,
                prompts,
                files,
                equal_cost=arguments.equal_cost,
                step=arguments.step or SearchSettings.step,
                on_layer=on_layer,
            )
    if arguments.json != STDOUT:
        print(_comparison_text(found))
    write_json(
        arguments.json,
        {
            "format": "minference_comparison",
            "version": 1,
            "model": loaded.name,
            "prompts": [{"name": prompt.name, "length": prompt.length} for prompt in prompts],
            "equal_cost": arguments.equal_cost,
            "files": [one.record() for one in found],
        },
    )
    return 0


def _comparison_text(found: list[Comparison]) -> str:
    rows = [("file", "mean error", "mean recall", "computed")]
    rows += [
        (one.name, f"{one.error:.4g}", f"{one.recall:.4f}", f"{one.computed_share:.1%}")
        for one in found
    ]
    text = table(rows)
    if len(found[0].heads) > MAX_HEADS_SHOWN:
        return text
    cells = [("layer", "head", *(cell for one in found for cell in ("pattern", "error")))]
    for of_head in zip(*(one.heads for one in found), strict=True):
        errors = [
            cell for one in of_head for cell in (pattern_text(one.pattern), f"{one.error:.2g}")
        ]
        cells.append((str(of_head[0].layer), str(of_head[0].head), *errors))
    return f"{text}\n\nIn the order of the files:\n{table(cells, num_left=3)}"
