"""The figures that MInference rests on (section 2), of any model: how few columns hold the
attention, how much is lost with another prompt's columns, and how close entries lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minference_ext.methods import Layer
from minference_ext.plots.observations import marks
from minference_ext.report.records import ObservedHead

from .prefill import watch_layers
from .strips import column_mass, rows

if TYPE_CHECKING:  # optional for the package, so imported where it is used
    from transformers import PreTrainedModel

NUM_DISTANCES = 32  # the last counts all that are farther
NUM_QUERIES = 64  # of a head whose entries count, spread over the prompt


def column_counts(length: int) -> list[int]:
    """Powers of two up to the length, the length, and the paper's marks; ascending."""
    powers = {1 << power for power in range(length.bit_length())}
    return sorted({count for count in powers | set(marks(length)) | {length} if count <= length})


def covered(mass: Tensor, ranked_by: Tensor, columns: list[int]) -> list[float]:
    """The attention on the best columns by `ranked_by`, for several counts of them.

    mass, ranked_by: float64 [length]. columns: counts, 1 .. length.
    """
    order = ranked_by.argsort(descending=True, stable=True)
    sums = mass[order].cumsum(0)
    return [min(1.0, float(sums[count - 1])) for count in columns]


def entry_distances(q: Tensor, k: Tensor, scale: float) -> list[int]:
    """How many keys apart neighbouring entries of a query are: counts of 1, 2, ..., NUM_DISTANCES
    or more.

    An entry is a key with more than the mean probability, 1 / keys of the query. Up to NUM_QUERIES
    queries count, evenly spread and with the last.

    q, k: [length, head_dim] of one head.
    """
    length = q.shape[0]
    step = max(1, length // NUM_QUERIES)
    queries = torch.arange(length - 1, -1, -step, device=q.device)[:NUM_QUERIES]
    is_entry = rows(q, k, scale, queries) > 1 / (queries[:, None] + 1)
    query, key = is_entry.nonzero(as_tuple=True)
    gaps = key.diff()[query.diff() == 0]
    counts = gaps.clamp(max=NUM_DISTANCES).bincount(minlength=NUM_DISTANCES + 1)
    return [int(count) for count in counts[1:]]


def observe(
    model: PreTrainedModel,
    prompt: Tensor,
    other: Tensor,
    *,
    done: Callable[[str], object] = str,
) -> list[ObservedHead]:
    """Measures every head that is not bound to a sliding window, from one prefill of each prompt.

    Memory beyond the prefills: one strip of a head, and a number for each key of all heads.

    Args:
        prompt, other: int64 [1, length] each, of the same length.
        done: called with a few words after each layer.

    Returns:
        Heads in the order of layers; `coverage` and `reused` for `column_counts(length)`.

    Raises:
        ValueError: prompts of different lengths, a model without layers of causal attention, or one
            whose layers all have sliding windows.
    """
    if prompt.shape != other.shape:
        raise ValueError(
            f"other has shape {tuple(other.shape)}; it must be that of prompt, "
            f"{tuple(prompt.shape)}: columns are compared by position"
        )
    columns = column_counts(prompt.shape[1])
    of_other: dict[tuple[int, int], Tensor] = {}
    heads: list[ObservedHead] = []

    def keep(layer: Layer, lse: Tensor) -> None:
        for head, q, k, own_lse in _heads(layer, lse):
            of_other[layer.layer_idx, head] = column_mass(q, k, own_lse, layer.scale).float().cpu()
        done(f"other prompt: layer {layer.layer_idx}")

    def compare(layer: Layer, lse: Tensor) -> None:
        for head, q, k, own_lse in _heads(layer, lse):
            mass = column_mass(q, k, own_lse, layer.scale).cpu()
            heads.append(
                ObservedHead(
                    layer.layer_idx,
                    head,
                    coverage=covered(mass, mass, columns),
                    reused=covered(mass, of_other[layer.layer_idx, head], columns),
                    distances=entry_distances(q, k, layer.scale),
                )
            )
        done(f"prompt: layer {layer.layer_idx}")

    watch_layers(model, other, keep)
    watch_layers(model, prompt, compare)
    if not heads:
        raise ValueError("model: all of its layers have sliding windows shorter than the prompt")
    return heads


def _heads(layer: Layer, lse: Tensor) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """Each query head with its q, k [length, head_dim] and lse [length]."""
    return [
        (head, layer.q[0, head], layer.k[0, head // layer.group], lse[0, head])
        for head in range(layer.num_heads)
    ]
