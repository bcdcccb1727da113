"""All methods by name, and methods from text: vertical_slash(1000,6096), xattention(stride=16)."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_type_hints

from minference_ext.patterns import HeadPattern

from . import shapes
from .ablations import OnlySlash, OnlyVertical
from .by_recall import VerticalSlashByRecall
from .dilated import StreamingLLMDilated, StreamingLLMStrided
from .flexprefill import FlexPrefill
from .infllm import InfLLM
from .method import Method
from .static import Static, StaticBlockSparse
from .top_k import TopK
from .xattention import XAttention

#: In the order in which `minference methods` lists them.
METHODS: tuple[type[Method], ...] = (
    shapes.Dense,
    shapes.AShape,
    shapes.StreamingLLM,
    shapes.TriShape,
    shapes.TriangleMix,
    shapes.VerticalSlash,
    shapes.VerticalSlashPerChunk,
    shapes.BlockSparse,
    OnlyVertical,
    OnlySlash,
    Static,
    StaticBlockSparse,
    StreamingLLMDilated,
    StreamingLLMStrided,
    InfLLM,
    FlexPrefill,
    XAttention,
    TopK,
    VerticalSlashByRecall,
    shapes.Patterns,
)

_BY_KIND: dict[str, type[Method]] = {
    method.name: method
    for method in (
        shapes.Dense,
        shapes.AShape,
        shapes.TriShape,
        shapes.VerticalSlash,
        shapes.BlockSparse,
    )
}


def by_name() -> dict[str, type[Method]]:
    return {method.name: method for method in METHODS}


def of_pattern(pattern: HeadPattern) -> Method:
    """The method that gives every head this pattern.

    Raises:
        ValueError: a kind that needs lists of indices.
    """
    if pattern.kind not in _BY_KIND:
        raise ValueError(f"kind is {pattern.kind!r}; it must be one of {', '.join(_BY_KIND)}")
    return _BY_KIND[pattern.kind](*pattern.sizes)


def parse(text: str) -> Method:
    """A method from `name`, `name(1000,6096)`, `name(slash_size=6096)`, or the path of a pattern
    file; parameters that are left out have their defaults.

    Raises:
        ValueError: an unknown name or parameter, or a value out of range.
        FileNotFoundError: a pattern file that is missing.
    """
    text = text.strip()
    if text.endswith(".json"):
        return shapes.Patterns(text)
    match = re.fullmatch(r"(\w+)\s*(?:\((.*)\))?", text)
    known = by_name()
    if match is None or match.group(1) not in known:
        raise ValueError(
            f"{text!r} is no method; `minference methods` describes them: {', '.join(known)}, or "
            "the path of a pattern file that ends in .json"
        )
    method, brackets = known[match.group(1)], (match.group(2) or "").strip()
    if method is shapes.Patterns and brackets:  # a path, which may hold commas and equals signs
        return shapes.Patterns(brackets.removeprefix("file="))
    arguments = _arguments(method, brackets)
    for parameter in parameters(method):
        if parameter.is_required and parameter.name not in arguments:
            raise ValueError(f"{method.name}: {parameter.name} is missing")
    return method(**arguments)


def parse_list(text: str) -> list[Method]:
    """Methods from a list with commas, those inside brackets apart.

    Raises: as `parse`.
    """
    return [parse(item) for item in re.split(r",(?![^(]*\))", text)]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a method."""

    name: str
    types: tuple[type, ...]
    default: Any  #: None where it is required
    is_required: bool

    @property
    def type_text(self) -> str:
        return " or ".join("None" if kind is type(None) else kind.__name__ for kind in self.types)


def parameters(method: type[Method]) -> list[Parameter]:
    hints = get_type_hints(method)
    found = []
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        if not field.init:
            continue
        hint = hints[field.name]
        types = getattr(hint, "__args__", (hint,))  # int | None
        is_required = field.default is dataclasses.MISSING
        default = None if is_required else field.default
        found.append(Parameter(field.name, types, default, is_required))
    return found


def _arguments(method: type[Method], text: str) -> dict[str, Any]:
    """What the brackets of a method hold, by name."""
    allowed = {parameter.name: parameter for parameter in parameters(method)}
    arguments: dict[str, Any] = {}
    items = [item.strip() for item in text.split(",")]
    if items[-1] == "":  # nothing at all, or a comma behind the last
        items.pop()
    for position, item in enumerate(items):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            if position >= len(allowed):
                raise ValueError(
                    f"{method.name}: found {position + 1} values; it takes "
                    f"{', '.join(allowed) or 'none'}"
                )
            if list(arguments) != list(allowed)[:position]:
                raise ValueError(
                    f"{method.name}: found {item!r} after a named value; it needs a name, too"
                )
            name, value = list(allowed)[position], name
        if name not in allowed:
            raise ValueError(
                f"{method.name}: found {name!r}; it takes {', '.join(allowed) or 'nothing'}"
            )
        if name in arguments:
            raise ValueError(f"{method.name}: found {name} twice")
        arguments[name] = _value(method.name, allowed[name], value)
    return arguments


def _value(method: str, parameter: Parameter, text: str) -> Any:
    if text == "None" and type(None) in parameter.types:
        return None
    for kind in (int, float, str):
        if kind in parameter.types:
            try:
                return kind(text)
            except ValueError:
                continue
    raise ValueError(
        f"{method}, {parameter.name}: found {text!r}; it must be {parameter.type_text}"
    )
