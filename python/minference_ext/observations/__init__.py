"""What the attention of any model looks like, measured without a matrix of queries by keys.

One dense prefill gives the queries and keys of each layer in turn (prefill.py). Probabilities are
computed in strips of a few hundred keys from the log-sum-exp that dense attention returns
(strips.py), and what a method attends is read from its own output (attended.py).
"""

from __future__ import annotations

from .maps import observed_maps
from .measure import observe

__all__ = ["observe", "observed_maps"]
