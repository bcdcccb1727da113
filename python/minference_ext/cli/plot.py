"""minference plot: pictures of a model's attention, and of what other commands measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from minference_ext import plots
from minference_ext.benchmark.machine import describe
from minference_ext.command_line import (
    STDOUT,
    Failure,
    Parser,
    add_json,
    add_threads,
    at_least,
    png_file,
    table,
    threads,
    write_json,
)
from minference_ext.methods import Method, parse
from minference_ext.model_patterns import ModelPatterns
from minference_ext.models import LoadedModel, add_model_arguments, model_from, warn_of_length
from minference_ext.observations import observe, observed_maps
from minference_ext.observations.measure import column_counts
from minference_ext.observations.prefill import MIN_LENGTH
from minference_ext.observations.prompts import prompts
from minference_ext.plots.attention_maps import AttentionMap
from minference_ext.plots.canvas import percent, shortened
from minference_ext.report import pictures
from minference_ext.report.observations import observation_sentences
from minference_ext.report.records import (
    VERSION,
    AttentionRecord,
    EvaluationRecord,
    ObservationRecord,
    PrefillRecord,
    Prompt,
    SearchRecord,
    TimesRecord,
    read_record,
)
from minference_ext.report.section import model_title
from minference_ext.report.times import times_title

_LENGTH = 4096
_METHOD = "vertical_slash(500,100)"  # leaves pairs out at this length
_CELLS = {1: 512, 2: 384, 3: 256}  # per side of a map, by maps in a row
_PICTURE = "FILE.png"
_Execute = Callable[[Parser, argparse.Namespace], int]

EPILOG = """examples:
  minference plot attention --model retrieval --layer 1 --head 6 --out map.png
  minference plot observations --model retrieval --length 8192 --out columns.png
  minference plot patterns patterns.json --out patterns.png
  minference plot density patterns.search.json --out density.png
  minference plot times prefill.json --out times.png
  minference plot retrieval eval.json --task niah --out niah.png

Each of them has a --help of its own."""

ATTENTION = """The model prefills the prompt with dense attention, up to the layer. Of each head the
picture shows the largest probability in each cell, kept or missed by the method, and which share of
a cell the method attends. No matrix of queries by keys is held, at any length. A method that
attends in a way of its own (infllm) leaves open which pairs it attends: its map shows the attention
alone.

examples:
  minference plot attention --model retrieval --layer 1 --head 6 --out map.png
  minference plot attention --model retrieval --length 8192 --layer 0 --head 0,1 \\
      --method 'a_shape(64,512)' --out maps.png
  minference plot attention --model ./Llama-3.2-1B --text book.txt --length 16384 --layer 9 \\
      --head 3,17 --method 'vertical_slash(30,2048)' --out maps.png"""

OBSERVATIONS = """What sparse prefill rests on (arXiv 2407.02490, section 2), of any model:
  left    attention on the k best columns of the prompt, each head and their mean, by k
  middle  the same with the k best columns of another prompt of the same length
  right   how many keys apart neighbouring entries of a query are; an entry is a probability above
          the query's mean
The prompts are the first and the next tokens of a text, or two that are generated. Probabilities
are computed twice for each pair of tokens, so time grows with the square of the length.

examples:
  minference plot observations --model retrieval --out columns.png
  minference plot observations --model ./Llama-3.2-1B --text book.txt --length 16384 \\
      --out columns.png --json columns.json
  minference report columns.json --out report.html"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "plot",
        help="draw attention maps, and what search, eval and bench measured",
        description="Pictures as PNG. They need matplotlib.",
        epilog=EPILOG,
    )
    subjects = parser.add_subparsers(metavar="subject", required=True)
    _add_attention(subjects)
    _add_observations(subjects)
    patterns = _add_subject(
        subjects,
        "patterns",
        "the pattern of every head: layers by heads",
        "minference plot patterns patterns.json --out patterns.png\n"
        "  minference plot patterns Qwen/Qwen2-7B-Instruct --folder configs --out patterns.png",
        _patterns,
    )
    patterns.add_argument("source", metavar="FILE", help="a file, or the name of a published one")
    patterns.add_argument(
        "--folder", type=Path, metavar="DIR", help="where published files are on this machine"
    )
    _add_file_subjects(subjects)


def _add_subject(
    subjects: argparse._SubParsersAction[Parser],
    name: str,
    content: str,
    examples: str,
    execute: _Execute,
) -> Parser:
    """A subject with --out; `examples` follow an indentation of two."""
    is_whole = "examples:" in examples
    parser = subjects.add_parser(
        name,
        help=content,
        description=f"Draws {content}.",
        epilog=examples if is_whole else f"examples:\n  {examples}",
    )
    parser.add_argument(
        "--out", type=png_file, required=True, metavar=_PICTURE, help="the picture, replaced"
    )
    parser.set_defaults(command=partial(execute, parser))
    return parser


def _add_file_subjects(subjects: argparse._SubParsersAction[Parser]) -> None:
    """Subjects that draw what is in a record."""

    def add(name: str, record: str, content: str, examples: str, execute: _Execute) -> Parser:
        parser = _add_subject(subjects, name, content, examples, execute)
        parser.add_argument("file", type=Path, metavar="FILE.json", help=record)
        return parser

    add(
        "density",
        "what minference search wrote beside its patterns",
        "what a search's patterns compute and keep, layer by layer",
        "minference search --model retrieval --out patterns.json\n"
        "  minference plot density patterns.search.json --out density.png",
        _density,
    )
    times = "written by --json of minference bench prefill, or of minference bench attention"
    add(
        "times",
        times,
        "time by length of the prompt, and from where on a method is faster",
        "minference bench prefill --model retrieval --json prefill.json\n"
        "  minference plot times prefill.json --out times.png",
        _times,
    )
    add(
        "breakdown",
        "written by --json of minference bench prefill --breakdown",
        "what the time of a prefill is spent on, by method and length",
        "minference bench prefill --model retrieval --breakdown --json prefill.json\n"
        "  minference plot breakdown prefill.json --out breakdown.png",
        _breakdown,
    )
    evaluation = "written by --out of minference eval"
    retrieval = add(
        "retrieval",
        evaluation,
        "what each method finds, by depth and length of the prompt",
        "minference eval niah --model retrieval --out eval.json\n"
        "  minference plot retrieval eval.json --out niah.png\n"
        "  minference plot retrieval eval.json --task kv_retrieval --out kv.png",
        _retrieval,
    )
    retrieval.add_argument(
        "--task", metavar="NAME", help="which one, if several of the file have depths"
    )
    scores = add(
        "scores",
        evaluation,
        "a table of scores, coloured by how close each method comes to the best",
        "minference plot scores eval.json --out scores.png\n"
        "  minference plot scores eval.json --by length --out lengths.png",
        _scores,
    )
    scores.add_argument(
        "--by", choices=("task", "length"), default="task", help="columns (default: task)"
    )


def _add_prompt_arguments(parser: Parser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--text", type=_text_file, metavar="FILE", help="UTF-8 (default: generated prompts)"
    )
    parser.add_argument(
        "--length",
        type=at_least(MIN_LENGTH),
        default=_LENGTH,
        metavar="N",
        help=f"tokens of a prompt (default: {_LENGTH})",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of generated prompts (default: 0)"
    )
    add_threads(parser)
    add_json(parser)


def _add_attention(subjects: argparse._SubParsersAction[Parser]) -> None:
    content = "attention maps of heads, and what a method keeps of them"
    parser = _add_subject(subjects, "attention", content, ATTENTION, _attention)
    _add_prompt_arguments(parser)
    parser.add_argument(
        "--layer", type=at_least(0), required=True, metavar="L", help="counted from 0"
    )
    parser.add_argument(
        "--head", type=_heads, required=True, metavar="H[,H]", help="query heads, from 0"
    )
    parser.add_argument(
        "--method",
        type=_method,
        default=_METHOD,
        metavar="M",
        help=f"of `minference methods`, in quotes (default: {_METHOD})",
    )


def _add_observations(subjects: argparse._SubParsersAction[Parser]) -> None:
    content = "how few columns hold the attention, and how many of them move"
    parser = _add_subject(subjects, "observations", content, OBSERVATIONS, _observations)
    _add_prompt_arguments(parser)


def _text_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}")
    return path


def _heads(text: str) -> list[int]:
    return list(dict.fromkeys(at_least(0)(item) for item in text.split(",")))


def _method(text: str) -> Method:
    try:
        return parse(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# ---- From a model --------------------------------------------------------------------------------


def _attention(parser: Parser, arguments: argparse.Namespace) -> int:
    heads: list[int] = arguments.head
    with threads(arguments.threads):
        loaded = model_from(arguments)
        config = loaded.model.config.get_text_config()
        for name, found, count in (
            ("--layer", arguments.layer, config.num_hidden_layers),
            ("--head", max(heads), config.num_attention_heads),
        ):
            if found >= count:
                parser.error(f"{name}: found {found}; {loaded.name} has 0..{count - 1}")
        warn_of_length(loaded, arguments.length)
        try:
            (prompt,) = prompts(loaded, arguments.length, 1, arguments.text, arguments.seed)
            maps = observed_maps(
                loaded.model,
                prompt.input_ids,
                arguments.layer,
                dict.fromkeys(heads, arguments.method),
                cells=_CELLS.get(len(heads), 256),
                num_last=prompt.num_last,
                roles=_roles(loaded, arguments.layer),
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise Failure(str(error)) from error
    if arguments.json != STDOUT:
        print(f"{loaded.name}, {prompt.name}: {arguments.length} tokens\n\n{_maps_text(maps)}")
        print(_remark(maps, arguments.method), end="")
    title = f"{model_title('Attention of', loaded.name)}: {arguments.length} tokens"
    plots.draw_attention_maps(arguments.out, maps, arguments.length, title, last=prompt.last)
    _say(arguments)
    write_json(
        arguments.json,
        {
            "model": loaded.name,
            "machine": describe(),
            "prompt": prompt.name,
            "length": arguments.length,
            "method": str(arguments.method),
            "heads": [_map_record(head) for head in maps],
        },
    )
    return 0


def _roles(loaded: LoadedModel, layer: int) -> list[str] | None:
    if loaded.spec is None:
        return None
    from minference_ext.testing import head_roles

    return head_roles(loaded.spec)[layer]


def _map_record(head: AttentionMap) -> dict[str, Any]:
    recall, recall_last = _kept(head)
    return {
        "layer": head.layer,
        "head": head.head,
        "attended_share": head.attended_share,
        "recall": recall,
        "recall_of_last_queries": recall_last,
    }


def _maps_text(maps: list[AttentionMap]) -> str:
    head = ["layer", "head", "attended", "kept", "kept of the last queries"]
    rows = [
        [str(of.layer), str(of.head), *map(_share, (of.attended_share, *_kept(of)))] for of in maps
    ]
    return table([head, *rows], num_left=0)


def _remark(maps: list[AttentionMap], method: Method) -> str:
    """What a picture leaves open, or shows nothing of."""
    if any(head.attended_share is None for head in maps):
        return f"\n{method} attends in a way of its own: attention alone is drawn.\n"
    whole = [
        str(head.head) for head in maps if head.attended_share == 1.0 and head.pattern != "dense"
    ]
    if not whole:
        return ""
    heads = f"head{'s' if len(whole) > 1 else ''} {', '.join(whole)}"
    return (
        f"\n{method} attends every pair of {heads} here, as dense attention does: a longer "
        "--length or smaller sizes leave some out.\n"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _kept(head: AttentionMap) -> tuple[float | None, float | None]:
    """Of all queries and of the last ones; None where it is not known what is attended."""
    return (None, None) if head.attended_share is None else (head.recall, head.recall_last)


def _observations(parser: Parser, arguments: argparse.Namespace) -> int:
    with threads(arguments.threads):
        loaded = model_from(arguments)
        warn_of_length(loaded, arguments.length)
        try:
            first, other = prompts(loaded, arguments.length, 2, arguments.text, arguments.seed)
            heads = observe(
                loaded.model,
                first.input_ids,
                other.input_ids,
                done=partial(print, file=sys.stderr, flush=True),
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise Failure(str(error)) from error
        machine = describe()
    record = ObservationRecord(
        loaded.name,
        machine,
        [Prompt(prompt.name, arguments.length) for prompt in (first, other)],
        column_counts(arguments.length),
        heads,
    )
    if arguments.json != STDOUT:
        print("\n".join(observation_sentences(record)))
    title = f"{model_title('Attention of', loaded.name)}: {arguments.length} tokens"
    plots.draw_observations(arguments.out, pictures.coverage(record), title)
    _say(arguments)
    head = {"format": ObservationRecord.FORMAT, "version": VERSION}
    write_json(arguments.json, {**head, **asdict(record)})
    return 0


# ---- From files ----------------------------------------------------------------------------------


def _patterns(parser: Parser, arguments: argparse.Namespace) -> int:
    try:
        patterns = ModelPatterns.load(arguments.source, folder=arguments.folder)
    except ValueError as error:
        raise Failure(str(error)) from error
    name = patterns.model or Path(arguments.source).name.removesuffix(".json")
    title = model_title("Patterns of", name)
    plots.draw_head_patterns(arguments.out, patterns.layers, patterns.counts(), title)
    return _say(arguments)


def _density(parser: Parser, arguments: argparse.Namespace) -> int:
    record: SearchRecord = _read(arguments, (SearchRecord,))
    title = model_title("Patterns of", record.model)
    plots.draw_density(arguments.out, pictures.densities(record), title)
    return _say(arguments)


def _times(parser: Parser, arguments: argparse.Namespace) -> int:
    record: TimesRecord = _read(arguments, (PrefillRecord, AttentionRecord))
    curves = pictures.curves(record.rows, record.crossovers)
    plots.draw_times(arguments.out, curves, times_title(record))
    return _say(arguments)


def _breakdown(parser: Parser, arguments: argparse.Namespace) -> int:
    record: PrefillRecord = _read(arguments, (PrefillRecord,))
    try:
        spent = pictures.spent(record)
    except ValueError as error:
        raise Failure(f"{arguments.file}, {error}") from error
    plots.draw_breakdown(arguments.out, spent, times_title(record))
    return _say(arguments)


def _retrieval(parser: Parser, arguments: argparse.Namespace) -> int:
    record: EvaluationRecord = _read(arguments, (EvaluationRecord,))
    try:
        task, found = pictures.retrievals(record, arguments.task)
    except ValueError as error:
        raise Failure(f"{arguments.file}, {error}") from error
    title = model_title(f"{shortened(task, 60)}:", record.model)
    plots.draw_retrieval(arguments.out, found, title)
    return _say(arguments)


def _scores(parser: Parser, arguments: argparse.Namespace) -> int:
    record: EvaluationRecord = _read(arguments, (EvaluationRecord,))
    title = f"{model_title('Scores of', record.model)} by {arguments.by}"
    scores = pictures.flat(pictures.scores_of(record, arguments.by))
    plots.draw_scores(arguments.out, pictures.methods_of(record), scores, title)
    return _say(arguments)


def _read(arguments: argparse.Namespace, kinds: tuple[type[Any], ...]) -> Any:
    try:
        record = read_record(arguments.file)
    except ValueError as error:
        raise Failure(str(error)) from error
    if not isinstance(record, kinds):
        formats = " and ".join(kind.FORMAT for kind in kinds)
        raise Failure(f"{arguments.file}: found {record.FORMAT}; this picture is of {formats}")
    return record


def _say(arguments: argparse.Namespace) -> int:
    if getattr(arguments, "json", None) != STDOUT:
        print(f"Picture: {arguments.out}")
    return 0
