"""minference eval: what methods of sparse prefill keep of a model's answers."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from minference_ext.command_line import (
    DTYPES,
    Failure,
    Parser,
    add_threads,
    at_least,
    output_file,
    png_file,
    threads,
)
from minference_ext.evaluation import (
    FAMILIES,
    Contender,
    Results,
    Row,
    Settings,
    TaskName,
    check_tasks,
    evaluate,
    even_depths,
    identity,
    needle_maps,
    parse_contenders,
    parse_tasks,
    summary,
)
from minference_ext.evaluation.task import DEFAULT_DEPTHS, DEFAULT_SAMPLES
from minference_ext.models import (
    add_model_arguments,
    check_device,
    model_from,
    warn_of_length,
)
from minference_ext.plots import draw_retrieval

NEEDLE_TASK = "niah"
METHODS = "dense,vertical_slash(1000,6096)"
LENGTHS = "4096"
INTERRUPTED = 130  # as a shell has it after Ctrl-C
EPILOG = """Every method prefills the same prompts; decoding is greedy and dense. Methods are those
of `minference methods`, pattern files, and "sdpa", PyTorch's own dense attention. A length counts
the tokens of a prompt and of its answer. A method that learns from an earlier prompt reads one
that is not asked, of the same task and length.

With --out every answer is kept as soon as it is there: the same command goes on where it was
interrupted, and more tasks, methods, lengths and samples may be added to the file. The share of
causal attention that is computed is counted on the first prompt of each task and length, whose
time is then left out of the mean if there are others.

examples:
  minference eval --list
  minference eval niah,mid_prompt --model retrieval --methods 'dense,streaming_llm(64,512)'
  minference eval niah --model DIR --lengths 4096,32768 --out niah.json --plot niah.png
  minference eval ruler --model DIR --methods 'dense,patterns.json' --samples 25 --out ruler.json
  minference eval infinitebench:passkey --model DIR --lengths 131072 --data InfiniteBench
  minference eval pg19 --model DIR --lengths 4096,32768,131072 --data books"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "eval",
        help="answers of a model under sparse prefill: needles, RULER, InfiniteBench, perplexity",
        description="Asks a model the prompts of tasks, with the prefill of each method.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "tasks",
        type=_tasks,
        metavar="TASK[,TASK]",
        help="of those that --list describes; ruler:vt is one of a family",
    )
    parser.add_argument(
        "--list", action="version", version=_list_text(), help="describe the tasks, and end"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--methods",
        type=_methods,
        default=METHODS,
        metavar="M,M",
        help=f"each with its parameters, all in quotes (default: {METHODS})",
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        default=LENGTHS,
        metavar="N,N",
        help=f"tokens (default: {LENGTHS})",
    )
    parser.add_argument(
        "--samples",
        type=at_least(1),
        metavar="N",
        help=f"prompts per length (default: {DEFAULT_SAMPLES}; of data files and lm_eval all)",
    )
    parser.add_argument(
        "--depths",
        type=at_least(1),
        default=DEFAULT_DEPTHS,
        metavar="N",
        help=f"of needles, evenly from start to end (default: {DEFAULT_DEPTHS})",
    )
    parser.add_argument("--data", type=_data, metavar="PATH", help="file or folder that tasks read")
    parser.add_argument(
        "--chat", action="store_true", help="wrap prompts in the tokenizer's chat template"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the prompts (default: 0)")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.json", help="keep the answers there, and go on"
    )
    parser.add_argument("--restart", action="store_true", help="discard what is in --out")
    parser.add_argument(
        "--plot", type=png_file, metavar="FILE.png", help="draw what niah found there"
    )
    add_threads(parser)
    parser.set_defaults(command=partial(_eval, parser))


def _tasks(text: str) -> list[TaskName]:
    try:
        return parse_tasks(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _methods(text: str) -> list[Contender]:
    try:
        return parse_contenders(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _lengths(text: str) -> list[int]:
    return sorted({at_least(2)(item) for item in text.split(",")})


def _data(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no file or folder {path}")
    return path


def _eval(parser: Parser, arguments: argparse.Namespace) -> int:
    names: Sequence[TaskName] = arguments.tasks
    if arguments.plot is not None and NEEDLE_TASK not in {name.family.name for name in names}:
        parser.error(f"--plot draws {NEEDLE_TASK}, which is not among the tasks")
    settings = Settings(
        samples=arguments.samples,
        depths=even_depths(arguments.depths),
        seed=arguments.seed,
        data=arguments.data,
        chat=arguments.chat,
    )
    check_tasks(names, settings)
    check_device(arguments.device)
    with threads(arguments.threads):
        results = Results.open(
            arguments.out,
            arguments.model,
            identity(DTYPES[arguments.dtype], settings, arguments.methods),
            device=arguments.device,
            restart=arguments.restart,
        )
        if results.has_other_machine:
            print(
                f"warning: {arguments.out} was begun on another machine, device or number of "
                "threads: its seconds cannot be compared with those that are added",
                file=sys.stderr,
            )
        loaded = model_from(arguments)
        warn_of_length(loaded, max(arguments.lengths))
        num_before = len(results.rows)
        try:
            rows = evaluate(
                loaded,
                names,
                arguments.methods,
                arguments.lengths,
                settings=settings,
                results=results,
                show_progress=True,
            )
        except KeyboardInterrupt:
            print(f"\ninterrupted; {_what_is_kept(results, num_before)}", file=sys.stderr)
            return INTERRUPTED
        except Failure as error:
            if len(results.rows) > num_before:
                raise Failure(f"{error}; {_what_is_kept(results, num_before)}") from error
            raise
    _report(rows, arguments)
    return 0


def _report(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    print(summary(rows))
    if arguments.out is not None:
        print(f"\nAnswers: {arguments.out}")
    if arguments.plot is not None:
        title = f"Needles found by {arguments.model}"
        draw_retrieval(arguments.plot, needle_maps(rows, NEEDLE_TASK), title)
        print(f"\nPicture: {arguments.plot}")


def _what_is_kept(results: Results, num_before: int) -> str:
    if results.path is None:
        return "nothing is kept without --out"
    num_new = len(results.rows) - num_before
    return (
        f"{results.path} has {len(results.rows)} answers, {num_new} of them new: the same command "
        "without --restart goes on"
    )


def _list_text() -> str:
    parts = []
    for family in FAMILIES:
        name = f"{family.name}[:TASK]" if family.has_members else family.name
        lines = [name, *_indented(family.summary), *_indented(f"Needs: {family.needs}")]
        if family.members:
            lines += _indented(f"Tasks: {', '.join(family.members)}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
