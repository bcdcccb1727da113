"""Prefill times that the authors of MInference published, to read beside one's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass

SUBJECT = "LLaMA-3-8B-1M on one A100 with 80 GB, bfloat16"
PROTOCOL = (
    "microsoft/MInference, README of experiments: a prompt repeated to the length, use_cache=False,"
    " the last logits alone, mean of 10 runs; CUDA 12.3, Triton 2.1.0"
)
METHODS = (
    "FlashAttention-2",
    "A-shape",
    "InfLLM",
    "MInference",
    "MInference, SGLang's kernel",
)


@dataclass(frozen=True)
class PublishedRow:
    """One length."""

    length: str  #: as published, in thousands of tokens
    seconds: tuple[float, ...]  #: one per method of METHODS


ROWS = (
    PublishedRow("1K", (0.546, 1.071, 2.945, 2.965, 1.255)),
    PublishedRow("10K", (0.976, 1.183, 2.211, 2.776, 2.438)),
    PublishedRow("50K", (8.529, 5.480, 14.636, 7.545, 6.196)),
    PublishedRow("100K", (24.883, 10.864, 27.672, 13.985, 10.816)),
    PublishedRow("200K", (79.392, 21.615, 55.647, 26.813, 20.623)),
    PublishedRow("300K", (169.624, 32.448, 80.743, 41.094, 31.016)),
    PublishedRow("500K", (456.784, 54.159, 167.915, 66.277, 51.963)),
    PublishedRow("1000K", (1765.564, 107.856, 328.586, 179.120, 112.376)),
)


def record() -> dict[str, object]:
    """All of it, for JSON."""
    return {
        "subject": SUBJECT,
        "protocol": PROTOCOL,
        "methods": list(METHODS),
        "rows": [asdict(row) for row in ROWS],
    }
