"""StreamingLLM with a wider window of which only every so many-th diagonal is attended."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from minference_ext.patterns import HeadPattern

from .method import Layer, LayerIndex, Method, check_sizes
from .shapes import MINFERENCE

_SOURCE = f"{MINFERENCE}, section 4, baselines"


class _Diagonals(Method):
    """The first `sink` keys, and offsets that do not depend on the prompt, pair by pair."""

    sink: int

    @abstractmethod
    def offsets(self) -> list[range]:
        """Disjoint ranges of offsets that a query attends."""

    def index(self, layer: Layer) -> LayerIndex:
        kv_len, heads, device = layer.k.shape[2], layer.num_heads, layer.q.device
        columns = torch.arange(min(self.sink, kv_len), dtype=torch.int32, device=device)
        within = [offset for offsets in self.offsets() for offset in offsets if offset < kv_len]
        diagonals = torch.tensor(within, dtype=torch.int32, device=device)
        return LayerIndex(
            (HeadPattern.vertical_slash_index(),) * heads,
            vertical_idx=columns.expand(1, heads, -1),
            slash_idx=diagonals.expand(1, heads, -1),
            mode="exact",
        )


@dataclass(frozen=True)
class StreamingLLMDilated(_Diagonals):
    """The first `sink` keys, and every `dilation`-th of the latest `window` keys, from the query's
    own: j < sink, or o = i - j < window with o a multiple of dilation.

    The original's code takes the odd offsets, without the query's own key, and covers each of them
    by a tile of 64 keys, so that it computes the whole window. Here it is pair by pair what the
    paper describes.
    """

    sink: int = 1024
    window: int = 8192
    dilation: int = 2

    name: ClassVar[str] = "streaming_llm_dilated"
    summary: ClassVar[str] = "The first keys, and every other key of a wide window."
    source: ClassVar[str] = f"{_SOURCE} (w/ dilated)"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, window=self.window)
        check_sizes(self.name, least=1, dilation=self.dilation)

    def offsets(self) -> list[range]:
        return [range(0, self.window, self.dilation)]


@dataclass(frozen=True)
class StreamingLLMStrided(_Diagonals):
    """The first `sink` keys, the latest `local` keys, and every `dilation`-th of the `window` keys
    before those: j < sink, o = i - j < local, or local <= o < local + window with o - local a
    multiple of dilation.

    The original's code begins one offset later, and covers each offset by a tile of 64 keys, so
    that it computes the whole window. Here it is pair by pair what the paper describes.
    """

    sink: int = 1024
    local: int = 2048
    window: int = 4096
    dilation: int = 2

    name: ClassVar[str] = "streaming_llm_strided"
    summary: ClassVar[str] = "The first keys, a window, and every other key of the next one."
    source: ClassVar[str] = f"{_SOURCE} (w/ strided)"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, local=self.local, window=self.window)
        check_sizes(self.name, least=1, dilation=self.dilation)

    def offsets(self) -> list[range]:
        return [range(self.local), range(self.local, self.local + self.window, self.dilation)]
