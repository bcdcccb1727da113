"""Pictures, as PNG: what heads attend, what is retrieved, what takes how long.

Data come from elsewhere (observations, report, demo, benchmark, model_patterns); functions here
only draw. They need matplotlib, which the package does not require: pip install
"minference_ext[plot]".
"""

from __future__ import annotations

from .attention_maps import draw_attention_maps
from .breakdown import draw_breakdown
from .canvas import is_available
from .density import draw_density
from .head_patterns import draw_head_patterns
from .observations import draw_observations
from .retrieval import draw_retrieval
from .scores import draw_scores
from .times import draw_times

__all__ = [
    "draw_attention_maps",
    "draw_breakdown",
    "draw_density",
    "draw_head_patterns",
    "draw_observations",
    "draw_retrieval",
    "draw_scores",
    "draw_times",
    "is_available",
]
