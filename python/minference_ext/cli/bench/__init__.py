"""minference bench: times on this machine."""

from __future__ import annotations

import argparse

from minference_ext.command_line import Parser

from . import attention, prefill

EPILOG = """examples:
  minference bench attention --help
  minference bench attention
  minference bench prefill --model retrieval"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="time attention, or the prefill of a model, against PyTorch's",
        description="Times on this machine.",
        epilog=EPILOG,
    )
    subjects = parser.add_subparsers(metavar="subject", required=True)
    attention.add_subject(subjects)
    prefill.add_subject(subjects)
