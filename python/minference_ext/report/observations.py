"""What a report says of the observations that sparse attention rests on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from minference_ext.plots import draw_observations
from minference_ext.plots.canvas import percent
from minference_ext.plots.observations import PAPER_COLUMNS, PAPER_LENGTH, distance_shares, marks

from . import pictures
from .records import ObservationRecord
from .section import Picture, Section, Table, machine_facts, mean, model_title, prompts_text

_PAPER = (
    f"{PAPER_COLUMNS} of {PAPER_LENGTH} columns: 96.8%; those of another prompt: 83.7% "
    "(LLaMA-3-8B, arXiv 2407.02490, section 2)"
)


def observation_sentences(record: ObservationRecord) -> list[str]:
    """What the figures come to, at the paper's counts of columns."""
    coverage = pictures.coverage(record)
    own, reused = _means(coverage.own), _means(coverage.reused)
    sentences = [
        f"The best {count} of {coverage.length} columns hold {percent(own[place])} of the "
        f"attention, mean over {len(record.heads)} heads; as many columns that were the best of "
        f"another prompt hold {percent(reused[place])}."
        for place, count in enumerate(record.columns)
        if count in marks(coverage.length)
    ]
    distances = distance_shares(coverage.distances)
    nearest = max(range(len(distances)), key=lambda place: distances[place]) + 1
    apart = "side by side" if nearest == 1 else f"{nearest} keys apart"
    if nearest == len(distances):
        apart += " or more"
    return [*sentences, f"Neighbouring entries are most often {apart}."]


def _means(heads: Sequence[Sequence[float]]) -> list[float]:
    return [mean(of_heads) for of_heads in zip(*heads, strict=True)]


def observations_section(record: ObservationRecord) -> Section:
    coverage = pictures.coverage(record)
    own, reused = _means(coverage.own), _means(coverage.reused)
    title = f"{model_title('Attention of', record.model)}: {coverage.length} tokens"
    rows = [
        (str(count), percent(count / coverage.length), percent(mine), percent(theirs))
        for count, mine, theirs in zip(record.columns, own, reused, strict=True)
    ]
    head = ("columns", "of the keys", "own best columns", "those of another prompt")
    return Section(
        title=f"Observations: {record.model}",
        conclusion=observation_sentences(record),
        facts=[
            ("model", record.model),
            ("prompts", prompts_text(record.prompts)),
            ("heads", str(len(record.heads))),
            ("paper", _PAPER),
            *machine_facts(record.machine),
        ],
        pictures=[
            Picture(
                "Attention by number of columns, and distances between entries",
                partial(draw_observations, coverage=coverage, title=title),
            )
        ],
        tables=[Table("Attention on columns, mean over the heads", head, rows, 0)],
    )
