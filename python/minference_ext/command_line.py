"""What every command line of the package shares: arguments, exit codes, tables and JSON.

Exit codes: 0, 1 for what failed (a file is invalid), 2 for arguments that make no sense, 130 after
Ctrl-C. An error is one sentence on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from .plots.canvas import MISSING, is_available

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STDOUT = Path("-")


class Failure(Exception):
    """Ends a command with exit code 1; its text is the sentence."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and whose examples stand in `epilog` as written."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run(program: str, command: Callable[[], int]) -> int:
    """Runs a command and returns its exit code; what it raises becomes a sentence."""
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough: `minference info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Failure, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    return code


# ---- Arguments -----------------------------------------------------------------------------------


def at_least(minimum: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {minimum}")
        return value

    return number


def output_file(text: str) -> Path:
    """A path in a folder that exists, so that no minutes pass before the answer is no."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a folder")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path


def png_file(text: str) -> Path:
    if not is_available():
        raise argparse.ArgumentTypeError(MISSING)
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return output_file(text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=output_file,
        metavar="FILE",
        help='also write all of it as JSON; "-" prints the JSON in place of the text',
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=at_least(1), help="default: PyTorch's")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within it, torch and the ops use that many threads; None: as many as before."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


# ---- Output --------------------------------------------------------------------------------------


def write_json(path: Path | None, record: object) -> None:
    """Writes what --json asks for: to a file, to stdout, or nothing."""
    if path is None:
        return
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def table(rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Rows as aligned text, two spaces between columns; the first `num_left` columns left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < num_left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
