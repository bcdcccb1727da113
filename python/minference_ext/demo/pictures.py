"""The demo's pictures: what is found at which length and depth, where heads look, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minference_ext.benchmark.crossover import crossover
from minference_ext.plots import draw_attention_maps, draw_retrieval, draw_times
from minference_ext.plots.attention_maps import AttentionMap
from minference_ext.plots.retrieval import Retrieval
from minference_ext.plots.times import Curve

from .measure import Result

LEAST_LENGTH = 128  # of the prompts in the pictures; ten needles fit, and patterns apply
NUM_LENGTHS = 8
MAP_LENGTH = 2048  # of the prompt whose attention is drawn, at most

ByLength = Mapping[int, Sequence[Result]]  # tokens, ascending; methods in one order


def shorter_lengths(length: int) -> list[int]:
    """Halves of `length`, ascending, without it."""
    halves = [length >> power for power in range(1, NUM_LENGTHS)]
    return sorted(half for half in halves if half >= LEAST_LENGTH)


def crossovers(by_length: ByLength) -> dict[str, float | None]:
    """By sparse method: tokens from which on its attention is faster than dense attention.

    Empty without the dense method.
    """
    curves = _curves(by_length)
    if not any(curve.is_dense for curve in curves):
        return {}
    return {curve.method: curve.crossover for curve in curves if not curve.is_dense}


def save_pictures(
    folder: Path,
    by_length: ByLength,
    depths: Sequence[float],
    maps: Sequence[AttentionMap],
    map_length: int,
    machine: str,
) -> list[tuple[Path, str]]:
    """Draws all, and returns each file with what it shows."""
    files = {
        folder / "retrieval.png": "needles found, by length of the prompt and depth",
        folder / "attention_roles.png": "where a head of each role looks, and what is attended",
        folder / "attention_maps.png": "the same of all heads",
        folder / "attention_time.png": "time of attention by length, and where sparse is faster",
    }
    retrieval, roles, all_heads, times = files
    title = f"Where heads look, and what their patterns attend of it: {map_length} tokens"
    one_per_role = {head.role: head for head in reversed(maps)}
    draw_retrieval(
        retrieval, _retrievals(by_length, depths), "Ten needles per prompt: which are found"
    )
    draw_attention_maps(roles, list(reversed(one_per_role.values())), map_length, title)
    draw_attention_maps(all_heads, maps, map_length, title)
    draw_times(
        times,
        _curves(by_length),
        f"Time of attention in a prefill of the demo's model\n{machine}",
    )
    return list(files.items())


def _retrievals(by_length: ByLength, depths: Sequence[float]) -> list[Retrieval]:
    return [
        Retrieval(
            of[-1].method,
            of[-1].description,
            list(by_length),
            depths,
            [row.retrieved for row in of],
        )
        for of in zip(*by_length.values(), strict=True)
    ]


def _curves(by_length: ByLength) -> list[Curve]:
    lengths = list(by_length)
    seconds = {
        of[0].method: [row.median_attention_seconds for row in of]
        for of in zip(*by_length.values(), strict=True)
    }
    baseline = next(iter(seconds.values()))
    curves = []
    for method, own in seconds.items():
        speedups = [base / time for base, time in zip(baseline, own, strict=True)]
        has_crossover = "dense" in seconds and method != "dense"
        point = crossover(lengths, speedups) if has_crossover else None
        name = "dense (PyTorch SDPA)" if method == "dense" else method
        curves.append(Curve(name, lengths, own, speedups, method == "dense", point))
    return curves
