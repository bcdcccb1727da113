"""The patterns of MInference as methods: the kernels know each of them by name."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from minference_ext.model_patterns import ModelPatterns
from minference_ext.patterns import HeadPattern

from .method import Layer, LayerIndex, Method, check_sizes, require

MINFERENCE = "MInference (arXiv 2407.02490)"


class _Uniform(Method):
    """One HeadPattern for all heads."""

    @abstractmethod
    def pattern(self) -> HeadPattern:
        """That of every head."""

    def index(self, layer: Layer) -> LayerIndex:
        return LayerIndex((self.pattern(),) * layer.num_heads)


@dataclass(frozen=True)
class Dense(_Uniform):
    """A query at position i attends every key j <= i."""

    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "Every key up to the query's own."
    source: ClassVar[str] = "Attention is all you need (arXiv 1706.03762)"

    def pattern(self) -> HeadPattern:
        return HeadPattern.dense()


@dataclass(frozen=True)
class AShape(_Uniform):
    """The first `sink` keys and the latest `window` keys, the query's own included.

    A query at position i attends key j <= i if j < sink, or i - j < window.
    """

    sink: int = 128
    window: int = 3968

    name: ClassVar[str] = "a_shape"
    summary: ClassVar[str] = "The first keys and a window; sizes of the original's a_shape."
    source: ClassVar[str] = f"{MINFERENCE}, section 2.2"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, window=self.window)

    def pattern(self) -> HeadPattern:
        return HeadPattern.a_shape(self.sink, self.window)


@dataclass(frozen=True)
class StreamingLLM(AShape):
    """`a_shape` with the sizes of the paper's baseline.

    A query at position i attends key j <= i if j < sink, or i - j < window. Keys keep their
    positions; the original's, which drops keys from the cache, counts them anew.
    """

    sink: int = 1024
    window: int = 4096

    name: ClassVar[str] = "streaming_llm"
    summary: ClassVar[str] = "A-shape with the sizes of the paper's baseline."
    source: ClassVar[str] = f"StreamingLLM (arXiv 2309.17453); sizes of {MINFERENCE}, section 4"


@dataclass(frozen=True)
class TriShape(_Uniform):
    """`a_shape` whose last `last` queries attend every key.

    A query at position i attends key j <= i if j < sink, or i - j < window, or if it is one of the
    last `last` queries of the call: of a prompt in chunks, of each chunk.
    """

    sink: int = 128
    window: int = 3968
    last: int = 100

    name: ClassVar[str] = "tri_shape"
    summary: ClassVar[str] = "A-shape; the last queries attend every key."
    source: ClassVar[str] = "SCBench (arXiv 2412.10319)"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, window=self.window, last=self.last)

    def pattern(self) -> HeadPattern:
        return HeadPattern.tri_shape(self.sink, self.window, self.last)


@dataclass(frozen=True)
class TriangleMix(Method):
    """Dense in layers 0 .. starting_layer - 1, `tri_shape` from layer `starting_layer` on.

    The paper's starting layer is 16 for the 32 layers of Llama-3.1-8B, and 20 for the 28 of
    Qwen2.5-7B.
    """

    starting_layer: int = 16
    sink: int = 8
    window: int = 512
    last: int = 128

    name: ClassVar[str] = "triangle_mix"
    summary: ClassVar[str] = "Dense in the first layers, tri-shape from starting_layer on."
    source: ClassVar[str] = "TriangleMix (arXiv 2507.21526)"

    def __post_init__(self) -> None:
        check_sizes(
            self.name,
            starting_layer=self.starting_layer,
            sink=self.sink,
            window=self.window,
            last=self.last,
        )

    def index(self, layer: Layer) -> LayerIndex:
        is_dense = layer.layer_idx < self.starting_layer
        tri_shape = HeadPattern.tri_shape(self.sink, self.window, self.last)
        return LayerIndex((HeadPattern.dense() if is_dense else tri_shape,) * layer.num_heads)


@dataclass(frozen=True)
class VerticalSlash(_Uniform):
    """Columns and diagonals, estimated once per prompt from its last queries.

    The last min(64, q_len) queries attend all keys. Sums of their probabilities along columns and
    diagonals rank the lines, of which the min(kv_len, max(vertical_size, 30)) best columns and the
    min(kv_len, max(slash_size, 50)) best offsets are taken; columns 0..29 and offsets 0..99 rank
    first, ties go to the lowest index. A query at position i attends key j <= i if j is one of the
    columns, or if an offset covers j for the query's row block of 64: with e = 64 + the position of
    the block's first query, offset s covers the keys e - 64 - s .. e - s - 1.

    A head for which dense attention costs no more is dense.
    """

    vertical_size: int = 1000
    slash_size: int = 6096

    name: ClassVar[str] = "vertical_slash"
    summary: ClassVar[str] = "Columns and diagonals, estimated from the prompt's last 64 queries."
    source: ClassVar[str] = f"{MINFERENCE}, section 3.2, algorithm 2"

    def __post_init__(self) -> None:
        check_sizes(self.name, vertical_size=self.vertical_size, slash_size=self.slash_size)

    def pattern(self) -> HeadPattern:
        return HeadPattern.vertical_slash(self.vertical_size, self.slash_size)


@dataclass(frozen=True)
class VerticalSlashPerChunk(VerticalSlash):
    """`vertical_slash` for every `estimate_every` queries anew, from the last 64 of these.

    Each such chunk attends as if it were a call of its own, with the keys up to its last query. The
    report's chunks have 32768 queries, and are those of a chunked prefill.
    """

    estimate_every: int = 4096

    name: ClassVar[str] = "vertical_slash_per_chunk"
    summary: ClassVar[str] = "Vertical-slash, estimated anew for every chunk of queries."
    source: ClassVar[str] = "Qwen2.5-1M report (arXiv 2501.15383), section 5.2"

    def __post_init__(self) -> None:
        super().__post_init__()
        every = self.estimate_every
        require(
            type(every) is int and every > 0 and every % 64 == 0,
            f"{self.name}, estimate_every",
            every,
            "a positive multiple of 64",
        )

    def index(self, layer: Layer) -> LayerIndex:
        heads = (self.pattern(),) * layer.num_heads
        return LayerIndex(heads, estimate_every=self.estimate_every)


@dataclass(frozen=True)
class BlockSparse(_Uniform):
    """The `top_k` best key blocks of each row block, by mean-pooled scores.

    Row block m, 64 queries, ranks the 64-wide key blocks n that hold a key it may attend by
    mean(q rows of m) . mean(k rows of n), ties to the lowest n. Its own block is not forced in.
    """

    top_k: int = 100

    name: ClassVar[str] = "block_sparse"
    summary: ClassVar[str] = "The best 64-wide key blocks of each row block, by mean-pooled scores."
    source: ClassVar[str] = f"{MINFERENCE}, section 3.2, algorithm 3"

    def __post_init__(self) -> None:
        check_sizes(self.name, least=1, top_k=self.top_k)

    def pattern(self) -> HeadPattern:
        return HeadPattern.block_sparse(self.top_k)


@dataclass(frozen=True)
class Patterns(Method):
    """The pattern of every head of a model, from a file.

    `file` is one that `minference search` wrote or MInference published, or the name of a published
    one or of its model; `minference patterns list` names them.
    """

    file: str  #: as `ModelPatterns.load` takes it
    model_patterns: ModelPatterns = field(init=False, repr=False, compare=False)

    name: ClassVar[str] = "patterns"
    summary: ClassVar[str] = (
        "Every head its own pattern, from a file (minference search, patterns)."
    )
    source: ClassVar[str] = f"{MINFERENCE}, section 3.2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_patterns", ModelPatterns.load(self.file))

    def index(self, layer: Layer) -> LayerIndex:
        patterns, heads = self.model_patterns, layer.head_indices
        require(
            layer.layer_idx < patterns.num_layers and max(heads) < patterns.num_heads,
            self.file,
            f"{patterns.num_layers} layers x {patterns.num_heads} heads",
            f"those of the model, which has a layer {layer.layer_idx} with a head {max(heads)}",
        )
        return LayerIndex(tuple(patterns.layers[layer.layer_idx][head] for head in heads))
