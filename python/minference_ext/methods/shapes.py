"""The patterns of MInference as methods: the kernels know each of them by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minference_ext.model_patterns import ModelPatterns
from minference_ext.patterns import HeadPattern

from .method import Layer, LayerIndex, Method, check_sizes, require

MINFERENCE = "MInference (arXiv 2407.02490)"


class _Uniform(Method):
    """One HeadPattern for all heads."""

    def pattern(self) -> HeadPattern:
        raise NotImplementedError

    def index(self, layer: Layer) -> LayerIndex:
        return LayerIndex((self.pattern(),) * layer.num_heads)


@dataclass(frozen=True)
class Dense(_Uniform):
    name: ClassVar[str] = "dense"
    summary: ClassVar[str] = "Every key up to the query's own."
    source: ClassVar[str] = "Attention is all you need (arXiv 1706.03762)"

    def pattern(self) -> HeadPattern:
        return HeadPattern.dense()


@dataclass(frozen=True)
class AShape(_Uniform):
    """The first `sink` keys and the latest `window` keys."""

    sink: int = 128
    window: int = 3968

    name: ClassVar[str] = "a_shape"
    summary: ClassVar[str] = "The first keys and a window; sizes of the original's a_shape."
    source: ClassVar[str] = f"{MINFERENCE}, section 3.1"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, window=self.window)

    def pattern(self) -> HeadPattern:
        return HeadPattern.a_shape(self.sink, self.window)


@dataclass(frozen=True)
class StreamingLLM(AShape):
    """A-shape with the sizes of the paper's baseline."""

    sink: int = 1024
    window: int = 4096

    name: ClassVar[str] = "streaming_llm"
    summary: ClassVar[str] = "A-shape with the sizes of the paper's baseline."
    source: ClassVar[str] = f"StreamingLLM (arXiv 2309.17453); sizes of {MINFERENCE}, section 4"


@dataclass(frozen=True)
class TriShape(_Uniform):
    """A-shape whose last `last` queries attend every key."""

    sink: int = 128
    window: int = 3968
    last: int = 100

    name: ClassVar[str] = "tri_shape"
    summary: ClassVar[str] = "A-shape; the last queries attend every key."
    source: ClassVar[str] = "SCBench (arXiv 2412.10319), section 3"

    def __post_init__(self) -> None:
        check_sizes(self.name, sink=self.sink, window=self.window, last=self.last)

    def pattern(self) -> HeadPattern:
        return HeadPattern.tri_shape(self.sink, self.window, self.last)


@dataclass(frozen=True)
class TriangleMix(Method):
    """Dense below `starting_layer`, from there on tri-shape."""

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
    """Columns and diagonals, estimated once from the last queries."""

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
    """Columns and diagonals, estimated anew for every chunk of queries."""

    estimate_every: int = 4096

    name: ClassVar[str] = "vertical_slash_per_chunk"
    summary: ClassVar[str] = "Vertical-slash, estimated anew for every chunk of queries."
    source: ClassVar[str] = "Qwen2.5-1M report (arXiv 2501.15383), section on chunked prefill"

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
    """The best key blocks of each row block, by mean-pooled scores."""

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
    """The pattern of every head of a model, from a file or as found by the search."""

    file: str  #: as `ModelPatterns.load` takes it

    name: ClassVar[str] = "patterns"
    summary: ClassVar[str] = (
        "Every head its own pattern, from a file (minference search, patterns)."
    )
    source: ClassVar[str] = f"{MINFERENCE}, section 3.2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patterns", ModelPatterns.load(Path(self.file)))

    @property
    def model_patterns(self) -> ModelPatterns:
        patterns: ModelPatterns = self._patterns  # type: ignore[attr-defined]
        return patterns

    def index(self, layer: Layer) -> LayerIndex:
        patterns, heads = self.model_patterns, layer.head_indices
        require(
            layer.layer_idx < patterns.num_layers and max(heads) < patterns.num_heads,
            self.file,
            f"{patterns.num_layers} layers x {patterns.num_heads} heads",
            f"those of the model, which has a layer {layer.layer_idx} with a head {max(heads)}",
        )
        return LayerIndex(tuple(patterns.layers[layer.layer_idx][head] for head in heads))
