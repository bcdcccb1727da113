"""Vertical-slash with as many lines as the prompt at hand needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from minference_ext.ops import dense_attention, vs_attention
from minference_ext.patterns import HeadPattern

from .method import Layer, LayerIndex, Method, check_sizes, require

_LAST_QUERIES = 64  # those from which lines are estimated


@dataclass(frozen=True)
class VerticalSlashByRecall(Method):
    """Columns and diagonals, doubled per head until they recall enough attention of this prompt.

    Recall is the mean over the last 64 queries (all, if there are fewer) of exp(lse of the lines -
    lse of dense attention): the share of a query's attention that the lines hold. The lines are
    those that `vertical_slash` estimates from the same queries, and they cover what they cover for
    a call of these queries alone. Every head starts at `vertical_size` and `slash_size`; both
    double until recall is at least `recall`. A head is dense if it would need more lines, columns
    and diagonals together, than `max_share` of the keys. Heads do not affect each other. As in
    `vertical_slash`, sizes below 30 columns or 50 diagonals are taken as these.

    It is the refinement of Qwen2.5-1M, which does the same once, on calibration prompts, and adds
    instead of doubling. Its cost is that of 64 rows of attention and an estimation per round, in at
    most 1 + log2(max_share * kv_len / (vertical_size + slash_size)) rounds, which `stats` does not
    count.

    Behind a prefix, the queries are the last ones of the call.
    """

    recall: float = 0.95
    vertical_size: int = 30
    slash_size: int = 256
    max_share: float = 1.0

    name: ClassVar[str] = "vertical_slash_by_recall"
    summary: ClassVar[str] = "Vertical-slash, sized per head and prompt to recall enough attention."
    source: ClassVar[str] = "Qwen2.5-1M report (arXiv 2501.15383), section 5.2, algorithm 1"

    def __post_init__(self) -> None:
        require(0 < self.recall <= 1, f"{self.name}, recall", self.recall, "in (0, 1]")
        sizes = {"vertical_size": self.vertical_size, "slash_size": self.slash_size}
        check_sizes(self.name, least=1, **sizes)
        require(0 < self.max_share <= 1, f"{self.name}, max_share", self.max_share, "in (0, 1]")

    def index(self, layer: Layer) -> LayerIndex:
        last = layer.q[:, :, -_LAST_QUERIES:]
        _, dense_lse = dense_attention(last, layer.k, layer.v, softmax_scale=layer.softmax_scale)
        most = self.max_share * layer.k.shape[2]
        factors: list[int | None] = [None] * layer.num_heads  # of both sizes, once large enough
        factor = 1
        while None in factors and factor * (self.vertical_size + self.slash_size) <= most:
            _, lse = vs_attention(
                last,
                layer.k,
                layer.v,
                [(found or factor) * self.vertical_size for found in factors],
                [(found or factor) * self.slash_size for found in factors],
                dense_fallback=False,
                softmax_scale=layer.softmax_scale,
            )
            recalls = (lse - dense_lse).exp().mean(-1)[0].tolist()
            for head, recall in enumerate(recalls):
                if factors[head] is None and recall >= self.recall:
                    factors[head] = factor
            factor *= 2
        return LayerIndex(tuple(self._pattern(found) for found in factors))

    def _pattern(self, factor: int | None) -> HeadPattern:
        if factor is None:
            return HeadPattern.dense()
        return HeadPattern.vertical_slash(factor * self.vertical_size, factor * self.slash_size)
