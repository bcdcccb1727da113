"""minference patterns: look at the patterns of a model's heads, list published ones, convert."""

from __future__ import annotations

import argparse
import shutil
import string
from pathlib import Path
from typing import Any

from minference_ext.command_line import (
    STDOUT,
    Failure,
    Parser,
    add_json,
    png_file,
    table,
    write_json,
)
from minference_ext.model_patterns import ModelPatterns, published_files
from minference_ext.pattern_text import pattern_text
from minference_ext.plots import draw_head_patterns

EPILOG = """examples:
  minference patterns list
  minference patterns show patterns.json --plot patterns.png
  minference patterns show Qwen/Qwen2-7B-Instruct --folder MInference/minference/configs
  minference patterns convert published.json patterns.json --format minference"""

_SYMBOLS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_OTHER = "."  # a pattern beyond the symbols


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "patterns",
        help="show, list and convert files with the patterns of a model's heads",
        description="Files with the pattern of every head of a model: show, list, convert.",
        epilog=EPILOG,
    )
    actions = parser.add_subparsers(metavar="action", required=True)

    show = actions.add_parser(
        "show",
        help="how many heads have which pattern, and which ones",
        description="Counts the patterns of a file and maps them: layers by heads.",
        epilog=EPILOG,
    )
    show.add_argument("source", metavar="FILE", help="a file, or the name of a published one")
    _add_folder(show)
    show.add_argument("--plot", type=png_file, metavar="FILE.png", help="draw the map there")
    add_json(show)
    show.set_defaults(command=_show)

    listing = actions.add_parser(
        "list",
        help="published files, and the models they are for",
        description="Names of the files in microsoft/MInference, and of the models they are for.",
        epilog=EPILOG,
    )
    add_json(listing)
    listing.set_defaults(command=_list)

    convert = actions.add_parser(
        "convert",
        help="from one format to the other",
        description="Reads a file of either format and writes it in the one that is named.",
        epilog=EPILOG,
    )
    convert.add_argument("source", metavar="IN", help="a file, or the name of a published one")
    convert.add_argument("target", type=Path, metavar="OUT", help="replaced if it exists")
    convert.add_argument(
        "--format",
        choices=("minference", "upstream"),
        default="minference",
        help="of OUT; upstream is that of microsoft/MInference (default: minference)",
    )
    _add_folder(convert)
    convert.set_defaults(command=_convert)


def _add_folder(parser: Parser) -> None:
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where published files are on this machine"
    )


def _load(arguments: argparse.Namespace) -> ModelPatterns:
    try:
        return ModelPatterns.load(arguments.source, folder=arguments.folder)
    except ValueError as error:
        raise Failure(str(error)) from error


def _show(arguments: argparse.Namespace) -> int:
    patterns = _load(arguments)
    counts = patterns.counts()
    symbols = {pattern: symbol for (pattern, _), symbol in zip(counts, _SYMBOLS, strict=False)}
    rows = ["".join(symbols.get(pattern, _OTHER) for pattern in row) for row in patterns.layers]
    if arguments.json != STDOUT:
        print(_counts_text(patterns, symbols))
        print(_map_text(rows))
    if arguments.plot is not None:
        title = f"Patterns of {patterns.model or Path(arguments.source).name.removesuffix('.json')}"
        draw_head_patterns(arguments.plot, patterns.layers, counts, title)
        if arguments.json != STDOUT:
            print(f"\nPicture: {arguments.plot}")
    write_json(arguments.json, _record(patterns))
    return 0


def _counts_text(patterns: ModelPatterns, symbols: dict[Any, str]) -> str:
    total = patterns.num_layers * patterns.num_heads
    name = f"{patterns.model}: " if patterns.model else ""
    rows = [("", "pattern", "heads", "share")]
    for pattern, count in patterns.counts():
        symbol = symbols.get(pattern, _OTHER)
        rows.append((symbol, pattern_text(pattern), str(count), f"{count / total:.1%}"))
    return (
        f"{name}{patterns.num_layers} layers x {patterns.num_heads} query heads = {total}\n\n"
        f"{table(rows, num_left=2)}"
    )


def _map_text(rows: list[str]) -> str:
    """Layers down, heads across, if the terminal is wide enough."""
    margin = max(len("layer"), len(str(len(rows) - 1)))
    width = margin + 2 + len(rows[0])
    columns = shutil.get_terminal_size().columns
    if width > columns:
        return f"\nThe map needs {width} columns, the terminal has {columns}: --plot draws it."
    heads = "".join(str(head).ljust(8) for head in range(0, len(rows[0]), 8))
    lines = [f"{'layer':>{margin}}  {heads}".rstrip()]
    lines += [f"{layer:>{margin}}  {row}" for layer, row in enumerate(rows)]
    return "\n" + "\n".join(lines)


def _record(patterns: ModelPatterns) -> dict[str, Any]:
    return {
        "model": patterns.model,
        "num_layers": patterns.num_layers,
        "num_heads": patterns.num_heads,
        "counts": [
            {"pattern": pattern_text(pattern), "heads": count}
            for pattern, count in patterns.counts()
        ],
        "layers": [[pattern_text(pattern) for pattern in row] for row in patterns.layers],
    }


def _list(arguments: argparse.Namespace) -> int:
    files = published_files()
    if arguments.json != STDOUT:
        rows = [("file", "models")]
        for name, models in files.items():
            for index, model in enumerate(models or ("-",)):
                rows.append((name if index == 0 else "", model))
        print(table(rows, num_left=2))
        print(
            "\nThey are files of microsoft/MInference (minference/configs), not of this package:\n"
            "fetch them there and name the folder with --folder."
        )
    write_json(arguments.json, {name: list(models) for name, models in files.items()})
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    try:
        _load(arguments).save(arguments.target, format=arguments.format)
    except ValueError as error:
        raise Failure(str(error)) from error
    print(f"written: {arguments.target}")
    return 0
