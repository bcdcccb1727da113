"""The pattern of every query head of a model, and the two file formats that hold them.

Ours, one line per run of equal heads, in the order of layers and heads; "heads" are the first and
the last head of the run, sizes have the names of HeadPattern's constructors:

    {
      "format": "minference_patterns",
      "version": 1,
      "model": "Qwen/Qwen2-7B-Instruct",
      "num_layers": 28,
      "num_heads": 28,
      "layers": [
        {"layer": 0, "heads": [0, 26], "kind": "vertical_slash", "vertical_size": 30, ...},
        {"layer": 0, "heads": [27, 27], "kind": "dense"},
        ...
      ]
    }

"model" may be left out; "score" stands in every run or in none. Runs name their layer so that each
line of a diff says what it changes.

That of microsoft/MInference ("upstream"): a list over layers of {"<query head>": [type, size, size,
score]}. The files published there are not part of this package; `published_files` names them.
"""

from __future__ import annotations

import difflib
import json
import os
import reprlib
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

from .patterns import _KINDS, HeadPattern, PatternKind

FileFormat = Literal["minference", "upstream"]

_FORMAT = "minference_patterns"
_VERSION = 1
_MODEL_KINDS = tuple(kind for kind in _KINDS if kind not in ("vertical_slash_index", "block_index"))

# Upstream's names. Its third type, block_sparse, has a fixed size; its entries' sizes mean nothing.
_UPSTREAM_KINDS: dict[str, PatternKind] = {
    "vertical_and_slash": "vertical_slash",
    "stream_llm": "a_shape",
}
_UPSTREAM_BLOCK_SPARSE = HeadPattern.block_sparse(100)

_PUBLISHED_URL = "https://raw.githubusercontent.com/microsoft/MInference/main/minference/configs"
_PUBLISHED: dict[str, tuple[str, ...]] = {
    "GLM_4_9B_1M_instruct_kv_out_v32_fit_o_best_pattern": ("THUDM/glm-4-9b-chat-1m",),
    "Llama_3.1_70B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2": (
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Meta-Llama-3.1-70B-Instruct",
    ),
    "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern": (),
    "Llama_3.1_8B_Instruct_128k_kv_out_v32_fit_o_best_pattern_v2": (
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B-Instruct",
    ),
    "Llama_3_70B_Instruct_262k_kv_out_v32_fit_o_best_pattern": (
        "gradientai/Llama-3-70B-Instruct-Gradient-262k",
        "gradientai/Llama-3-70B-Instruct-Gradient-1048k",
    ),
    "Llama_3_8B_Instruct_262k_kv_out_v32_fit_o_best_pattern": (
        "gradientai/Llama-3-8B-Instruct-262k",
        "gradientai/Llama-3-8B-Instruct-Gradient-1048k",
        "gradientai/Llama-3-8B-Instruct-Gradient-4194k",
    ),
    "Phi_3_mini_128k_instruct_kv_out_v32_fit_o_best_pattern": (
        "microsoft/Phi-3-mini-128k-instruct",
    ),
    "Qwen2.5_14B_Instruct_1M": ("Qwen/Qwen2.5-14B-Instruct-1M",),
    "Qwen2.5_32B_Instruct_128k_kv_out_v32_fit_o_best_pattern": ("Qwen/Qwen2.5-32B-Instruct",),
    "Qwen2.5_72B_Instruct_128k_kv_out_v32_fit_o_best_pattern": ("Qwen/Qwen2.5-72B-Instruct",),
    "Qwen2.5_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern": (
        "Qwen/Qwen2.5-7B-Instruct",
    ),
    "Qwen2.5_7B_Instruct_1M": ("Qwen/Qwen2.5-7B-Instruct-1M",),
    "Qwen2_7B_Instruct_128k_instruct_kv_out_v32_fit_o_best_pattern": ("Qwen/Qwen2-7B-Instruct",),
    "Yi_9B_200k_kv_out_v32_fit_o_best_pattern": ("01-ai/Yi-9B-200K",),
}


def published_files() -> dict[str, tuple[str, ...]]:
    """The files in `minference/configs` of microsoft/MInference, by name without ".json".

    Each with the Hugging Face names of the models that upstream uses it for: none, one or more.
    """
    return dict(_PUBLISHED)


@dataclass(frozen=True, init=False, repr=False)
class ModelPatterns:
    """The pattern of every query head of a model.

    `minference_ext.transformers.configure(model, patterns)` sets them.

    Attributes:
        layers: [num_layers][num_heads], num_heads counts query heads.
        scores: None, or [num_layers][num_heads]: what the search that chose a pattern measured. Its
            unit depends on the search; nothing here reads it.
        model: None, or the name of the model. Upstream's format does not hold it.
    """

    layers: tuple[tuple[HeadPattern, ...], ...]
    scores: tuple[tuple[float, ...], ...] | None = None
    model: str | None = None

    def __init__(
        self,
        layers: Sequence[Sequence[HeadPattern]],
        scores: Sequence[Sequence[float]] | None = None,
        *,
        model: str | None = None,
    ) -> None:
        """Takes any sequences.

        Raises:
            ValueError: no layer or no head, layers with different numbers of heads, a kind that
                needs the indices of one prompt, a size that is no whole number >= 0 (top_k: >= 1),
                scores of another shape or not finite, or an empty model name.
        """
        own_layers = _tuples("layers", layers)
        for layer, heads in enumerate(own_layers):
            for head, pattern in enumerate(heads):
                _check_pattern(pattern, f"layer {layer}, head {head}")
        own_scores = None
        if scores is not None:
            own_scores = _tuples("scores", scores)
            _check_scores(own_scores, len(own_layers), len(own_layers[0]))
        if model is not None and (not isinstance(model, str) or not model):
            raise ValueError(f"model: found {model!r}; it must be None or a name")
        object.__setattr__(self, "layers", own_layers)
        object.__setattr__(self, "scores", own_scores)
        object.__setattr__(self, "model", model)

    def __repr__(self) -> str:
        name = "" if self.model is None else f" of {self.model}"
        return f"<ModelPatterns{name}: {self.num_layers} layers x {self.num_heads} heads>"

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """Query heads of one layer."""
        return len(self.layers[0])

    def counts(self) -> list[tuple[HeadPattern, int]]:
        """How many heads have each pattern: the most frequent first, then by first appearance."""
        return Counter(pattern for heads in self.layers for pattern in heads).most_common()

    @classmethod
    def uniform(cls, pattern: HeadPattern, num_layers: int, num_heads: int) -> ModelPatterns:
        """The same pattern in every head.

        Raises:
            ValueError: as the constructor; a number that is no whole number >= 1.
        """
        _check_number(num_layers, "num_layers", least=1)
        _check_number(num_heads, "num_heads", least=1)
        return cls([[pattern] * num_heads] * num_layers)

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], *, folder: str | os.PathLike[str] | None = None
    ) -> ModelPatterns:
        """Reads a file of either format, told apart by its content.

        Args:
            source: path of a file. If there is none: the name of a file in `published_files`, with
                or without ".json", or of a model there, exactly as Hugging Face spells it.
            folder: where published files are, looked up before `minference/configs` of an
                installed package minference, which is not imported. Nothing is ever downloaded.

        Raises:
            FileNotFoundError: no such file; says where it can be fetched, or which names are close.
            ValueError: as `loads`.
        """
        path = Path(source)
        if not path.is_file():
            path = _published_path(os.fspath(source), folder)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: it must be text in UTF-8: {error}") from error
        return cls.loads(text, name=str(path))

    @classmethod
    def loads(cls, text: str, *, name: str = "<string>") -> ModelPatterns:
        """Reads the text of a file of either format.

        Args:
            name: of the file, for errors.

        Raises:
            ValueError: malformed JSON, or content that breaks the format: which file, layer, head
                and field, what was found, what is allowed.
        """
        try:
            content = json.loads(text, object_pairs_hook=_Object)
            if isinstance(content, list):
                return cls(*_parse_upstream(content))
            if isinstance(content, _Object) and "format" in content:
                layers, scores, model = _parse_minference(content)
                return cls(layers, scores, model=model)
            raise ValueError(
                f"found {reprlib.repr(content)}; it must be a list (the format of "
                f'microsoft/MInference) or an object with "format": "{_FORMAT}"'
            )
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}: {error}") from error

    def dumps(self, *, format: FileFormat = "minference") -> str:
        """The text of a file, which `loads` reads.

        Args:
            format: "minference", or "upstream" for microsoft/MInference and what reads its files:
                only vertical_slash, a_shape and block_sparse with top_k 100; no model name; null
                for scores that are None.

        Raises:
            ValueError: `format`, or a pattern that "upstream" cannot say.
        """
        if format == "minference":
            return self._minference_text()
        if format == "upstream":
            content = [
                {
                    str(head): _upstream_entry(pattern, score, f"layer {layer}, head {head}")
                    for head, (pattern, score) in enumerate(heads)
                }
                for layer, heads in enumerate(self._scored_layers())
            ]
            return json.dumps(content) + "\n"
        raise ValueError(f"format: found {format!r}; it must be 'minference' or 'upstream'")

    def save(self, path: str | os.PathLike[str], *, format: FileFormat = "minference") -> None:
        """Writes a file. A file that is there is replaced as a whole, or on errors left as it is.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: as `dumps`.
        """
        text = self.dumps(format=format)
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder must exist, and {path.parent} does not")
        # Not a tempfile: those are readable by their owner only, and so would be the result.
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with unfinished.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # or a power failure could leave the new name without text
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _scored_layers(self) -> list[list[tuple[HeadPattern, float | None]]]:
        """[num_layers][num_heads] of pattern and score."""
        scores = self.scores or [[None] * self.num_heads] * self.num_layers
        return [
            list(zip(heads, row, strict=True))
            for heads, row in zip(self.layers, scores, strict=True)
        ]

    def _minference_text(self) -> str:
        head: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
        if self.model is not None:
            head["model"] = self.model
        head |= {"num_layers": self.num_layers, "num_heads": self.num_heads}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        runs = []
        for layer, heads in enumerate(self._scored_layers()):
            first = 0
            for (pattern, score), equal_heads in groupby(heads):
                last = first + len(list(equal_heads)) - 1
                run: dict[str, Any] = {"layer": layer, "heads": [first, last], **_named(pattern)}
                if score is not None:
                    run["score"] = score
                runs.append(f"    {json.dumps(run)}")
                first = last + 1
        return "{\n" + "".join(lines) + '  "layers": [\n' + ",\n".join(runs) + "\n  ]\n}\n"


# ---- What the constructor checks -----------------------------------------------------------------

_Entry = TypeVar("_Entry")


def _tuples(name: str, rows: Sequence[Sequence[_Entry]]) -> tuple[tuple[_Entry, ...], ...]:
    """[layers][heads] as tuples: at least one of each, and as many heads in every layer."""
    if not isinstance(rows, Sequence) or not rows:
        found = reprlib.repr(rows)
        raise ValueError(f"{name}: found {found}; it must be a sequence of one or more layers")
    for layer, heads in enumerate(rows):
        if not isinstance(heads, Sequence) or not heads:
            raise ValueError(
                f"{name}, layer {layer}: found {reprlib.repr(heads)}; it must be a sequence of one "
                "or more heads"
            )
        if len(heads) != len(rows[0]):
            raise ValueError(
                f"{name}, layer {layer}: found {len(heads)} heads; it must have {len(rows[0])}, as "
                "layer 0"
            )
    return tuple(tuple(heads) for heads in rows)


def _check_kind(kind: Any, where: str) -> None:
    if kind not in _MODEL_KINDS:
        found = reprlib.repr(kind)
        raise ValueError(
            f"{where}, kind: found {found}; it must be one of {', '.join(_MODEL_KINDS)}"
        )


def _check_pattern(pattern: HeadPattern, where: str) -> None:
    if not isinstance(pattern, HeadPattern):
        raise ValueError(f"{where}: found {reprlib.repr(pattern)}; it must be a HeadPattern")
    _check_kind(pattern.kind, where)
    for name, size in zip(_KINDS[pattern.kind][1], pattern.sizes, strict=True):
        _check_number(size, f"{where}, {name}", least=1 if name == "top_k" else 0)


def _check_number(number: Any, where: str, least: int) -> None:
    if type(number) is not int or number < least:  # bool is a subclass of int
        raise ValueError(
            f"{where}: found {reprlib.repr(number)}; it must be a whole number >= {least}"
        )


def _check_scores(scores: Sequence[Sequence[float]], num_layers: int, num_heads: int) -> None:
    if (len(scores), len(scores[0])) != (num_layers, num_heads):
        raise ValueError(
            f"scores: found {len(scores)} layers x {len(scores[0])} heads; it must be "
            f"{num_layers} x {num_heads}, as layers"
        )
    for layer, heads in enumerate(scores):
        for head, score in enumerate(heads):
            is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
            # An int beyond every float is refused too: no reader of the file could hold it.
            if not is_number or not abs(score) <= sys.float_info.max:
                raise ValueError(
                    f"layer {layer}, head {head}, score: found {reprlib.repr(score)}; it must be "
                    "a finite number"
                )


# ---- Files ---------------------------------------------------------------------------------------

# What a file says, unchecked but for what a constructor call cannot express.
_Layers = list[list[HeadPattern]]
_Scores = list[list[Any]]


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys stood there more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [
            key for key, count in Counter(key for key, _ in pairs).items() if count > 1
        ]


def _check_object(value: Any, where: str) -> None:
    if not isinstance(value, _Object):
        raise ValueError(f"{where}: found {reprlib.repr(value)}; it must be an object")
    if value.repeated:
        raise ValueError(f"{where}: found key {value.repeated[0]!r} twice; a key may stand once")


def _check_keys(fields: _Object, where: str, required: Sequence[str], optional: str) -> None:
    allowed = (*required, optional)
    unknown = [f"unknown key {key!r}" for key in fields if key not in allowed]
    missing = [f"no key {key!r}" for key in required if key not in fields]
    if unknown or missing:
        raise ValueError(
            f"{where}: found {(unknown + missing)[0]}; the keys are {', '.join(required)} and, "
            f"optional, {optional}"
        )


def _named(pattern: HeadPattern) -> dict[str, Any]:
    """A pattern as a file of ours says it: its kind and its sizes by name."""
    sizes = zip(_KINDS[pattern.kind][1], pattern.sizes, strict=True)
    return {"kind": pattern.kind, **dict(sizes)}


def _parse_minference(content: _Object) -> tuple[_Layers, _Scores | None, Any]:
    """Layers, scores and model of a file of ours."""
    _check_object(content, "top level")
    if content["format"] != _FORMAT:
        found = reprlib.repr(content["format"])
        raise ValueError(f"format: found {found}; it must be '{_FORMAT}'")
    version = content.get("version")
    if type(version) is not int or version != _VERSION:
        found = reprlib.repr(version)
        raise ValueError(f"version: found {found}; this minference_ext reads version {_VERSION}")
    required = ("format", "version", "num_layers", "num_heads", "layers")
    _check_keys(content, "top level", required, "model")
    num_layers, num_heads, runs = (content[key] for key in required[2:])
    _check_number(num_layers, "num_layers", least=1)
    _check_number(num_heads, "num_heads", least=1)
    if not isinstance(runs, list):
        raise ValueError(f"layers: found {reprlib.repr(runs)}; it must be a list")
    if "model" in content and content["model"] is None:
        raise ValueError("model: found None; it must be a name, or left out")

    patterns: list[HeadPattern] = []
    scores: list[Any] = []
    for run in runs:
        layer, head = divmod(len(patterns), num_heads)
        if layer == num_layers:
            raise ValueError(
                f"layers: found {reprlib.repr(run)} after the last head; num_layers is "
                f"{num_layers} and num_heads {num_heads}"
            )
        where = f"layer {layer}, head {head}"
        pattern, count = _parse_run(run, where, layer, head, num_heads)
        if patterns and ("score" in run) != bool(scores):
            found = "a score" if "score" in run else "no score"
            raise ValueError(f"{where}: found {found}; every head must have one, or none")
        patterns += [pattern] * count
        scores += [run["score"]] * count if "score" in run else []
    if len(patterns) < num_layers * num_heads:
        layer, head = divmod(len(patterns), num_heads)
        raise ValueError(
            f"layer {layer}, head {head}: found the end of layers; num_layers is {num_layers} and "
            f"num_heads {num_heads}"
        )
    return _rows(patterns, num_heads), _rows(scores, num_heads) or None, content.get("model")


def _rows(entries: list[_Entry], num_heads: int) -> list[list[_Entry]]:
    return [entries[first : first + num_heads] for first in range(0, len(entries), num_heads)]


def _parse_run(
    run: Any, where: str, layer: int, head: int, num_heads: int
) -> tuple[HeadPattern, int]:
    """Pattern and number of heads of the run that must begin at this layer and head."""
    _check_object(run, where)
    kind = run.get("kind")
    _check_kind(kind, where)
    size_names = _KINDS[kind][1]
    _check_keys(run, where, ("layer", "heads", "kind", *size_names), "score")
    if type(run["layer"]) is not int or run["layer"] != layer:
        raise ValueError(
            f"{where}, layer: found {reprlib.repr(run['layer'])}; runs must be in order, and "
            f"layer {layer}, head {head} comes next"
        )
    heads = run["heads"]
    is_range = isinstance(heads, list) and [type(number) for number in heads] == [int, int]
    if not is_range or heads[0] != head or not head <= heads[1] < num_heads:
        raise ValueError(
            f"{where}, heads: found {reprlib.repr(heads)}; it must be [{head}, last], with last "
            f"from {head} to {num_heads - 1}"
        )
    return HeadPattern(kind, tuple(run[name] for name in size_names)), heads[1] - head + 1


def _parse_upstream(content: list[Any]) -> tuple[_Layers, _Scores | None]:
    """Layers and scores of a file of upstream's."""
    layers: _Layers = []
    scores: _Scores = []
    for layer, entries in enumerate(content):
        _check_object(entries, f"layer {layer}")
        names = [str(head) for head in range(len(entries))]
        if entries.keys() != set(names):
            found = next(name for name in entries if name not in names)
            absent = next(name for name in names if name not in entries)
            raise ValueError(
                f"layer {layer}: found head {found!r} and no head {absent!r}; its {len(names)} "
                f"heads must be '0' to {names[-1]!r}"
            )
        layers.append([])
        scores.append([])
        for name in names:
            pattern, score = _parse_upstream_entry(entries[name], f"layer {layer}, head {name}")
            layers[-1].append(pattern)
            scores[-1].append(score)
    has_score = any(score is not None for heads in scores for score in heads)
    return layers, scores if has_score else None


def _parse_upstream_entry(entry: Any, where: str) -> tuple[HeadPattern, Any]:
    if not isinstance(entry, list) or len(entry) != 4:
        raise ValueError(
            f"{where}: found {reprlib.repr(entry)}; it must be [type, size, size, score]"
        )
    kind, size0, size1, score = entry
    types = (*_UPSTREAM_KINDS, _UPSTREAM_BLOCK_SPARSE.kind)
    if kind not in types:
        found = reprlib.repr(kind)
        raise ValueError(f"{where}, type: found {found}; it must be one of {', '.join(types)}")
    if kind == _UPSTREAM_BLOCK_SPARSE.kind:
        return _UPSTREAM_BLOCK_SPARSE, score
    return HeadPattern(_UPSTREAM_KINDS[kind], (size0, size1)), score


def _upstream_entry(pattern: HeadPattern, score: float | None, where: str) -> list[Any]:
    for name, kind in _UPSTREAM_KINDS.items():
        if pattern.kind == kind:
            return [name, *pattern.sizes, score]
    if pattern == _UPSTREAM_BLOCK_SPARSE:
        return [pattern.kind, *pattern.sizes, 0, score]
    raise ValueError(
        f"{where}: found {_named(pattern)}; format 'upstream' can say vertical_slash, a_shape and "
        f"block_sparse with top_k {_UPSTREAM_BLOCK_SPARSE.sizes[0]} only"
    )


def _published_path(name: str, folder: str | os.PathLike[str] | None) -> Path:
    """Where the published file of that name, or of the model of that name, is on this machine."""
    stem = name.removesuffix(".json")
    if stem not in _PUBLISHED:
        stem_of = {model: stem for stem, models in _PUBLISHED.items() for model in models}
        if name not in stem_of:
            by_lower = {known.lower(): known for known in (*stem_of, *_PUBLISHED)}
            close = difflib.get_close_matches(stem.lower(), by_lower, n=4)
            suggestion = (
                f"close names are {', '.join(by_lower[match] for match in close)}"
                if close
                else "minference_ext.model_patterns.published_files() lists the names"
            )
            raise FileNotFoundError(
                f"{name!r} must be a file that exists, or the name of a published file or of a "
                f"model that has one; {suggestion}"
            )
        stem = stem_of[name]
    places = [] if folder is None else [Path(folder)]
    upstream = find_spec("minference")
    if upstream is not None:
        places += [Path(place) / "configs" for place in upstream.submodule_search_locations or ()]
    for place in places:
        if (place / f"{stem}.json").is_file():
            return place / f"{stem}.json"
    looked_in = (
        f"not in {' or '.join(map(str, places))}"
        if places
        else "folder was not given and no package minference is installed"
    )
    raise FileNotFoundError(
        f"{name}: looked for the file {stem}.json: {looked_in}. It is not part of minference_ext; "
        f"fetch {_PUBLISHED_URL}/{stem}.json and pass its folder, or its path"
    )
