"""Pictures, as PNG: what heads attend, what is retrieved, what takes how long.

Data come from elsewhere (demo, benchmark, model_patterns); functions here only draw. They need
matplotlib, which the package does not require: pip install "minference_ext[plot]".
"""

from __future__ import annotations

from .attention_maps import draw_attention_maps
from .canvas import is_available
from .head_patterns import draw_head_patterns
from .retrieval import draw_retrieval
from .times import draw_times

__all__ = [
    "draw_attention_maps",
    "draw_head_patterns",
    "draw_retrieval",
    "draw_times",
    "is_available",
]
