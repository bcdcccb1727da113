"""minference methods: what can be evaluated, searched and compared, with parameters and sources."""

from __future__ import annotations

import argparse
import inspect
import textwrap

from minference_ext.command_line import STDOUT, Parser, add_json, write_json
from minference_ext.methods import METHODS, Method, by_name, parameters

EPILOG = """A method is written as its name, name(1000,6096), or name(slash_size=6096); the path of
a pattern file ending in .json gives every head its own.

examples:
  minference methods
  minference methods flexprefill
  minference eval kv_retrieval --model retrieval --methods 'dense,vertical_slash(1000,6096)'"""


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "methods",
        help="list the methods, with their parameters and sources",
        description="The methods of sparse prefill, with their parameters and sources.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "method", nargs="?", type=_method, metavar="name", help="of one method, to read all of it"
    )
    add_json(parser)
    parser.set_defaults(command=_methods)


def _methods(arguments: argparse.Namespace) -> int:
    is_full = arguments.method is not None
    methods = [arguments.method] if is_full else METHODS
    if arguments.json != STDOUT:
        print("\n\n".join(_text(method, is_full) for method in methods))
    write_json(arguments.json, [_record(method) for method in methods])
    return 0


def _method(name: str) -> type[Method]:
    if name not in by_name():
        raise argparse.ArgumentTypeError(f"{name!r} is no method; known: {', '.join(by_name())}")
    return by_name()[name]


def _signature(method: type[Method]) -> str:
    values = [
        parameter.name if parameter.is_required else f"{parameter.name}={parameter.default}"
        for parameter in parameters(method)
    ]
    return f"{method.name}({', '.join(values)})" if values else method.name


def _text(method: type[Method], is_full: bool) -> str:
    lines = [_signature(method), f"    {method.summary}", f"    {method.source}"]
    if method.needs_whole_prompt:
        lines.append("    Whole prompts only: no chunked prefill, nothing behind a prefix.")
    if method.needs_rotation:
        lines.append("    Models with RoPE as in Llama only.")
    if is_full:
        lines += ["", textwrap.indent(inspect.getdoc(method) or "", "    ")]
    return "\n".join(lines)


def _record(method: type[Method]) -> dict[str, object]:
    return {
        "name": method.name,
        "summary": method.summary,
        "source": method.source,
        "needs_whole_prompt": method.needs_whole_prompt,
        "needs_rotation": method.needs_rotation,
        "has_memory": method.has_memory,
        "parameters": [
            {
                "name": parameter.name,
                "type": parameter.type_text,
                "default": parameter.default,
                "is_required": parameter.is_required,
            }
            for parameter in parameters(method)
        ],
    }
