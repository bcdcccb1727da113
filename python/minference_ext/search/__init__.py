"""The offline search: which pattern each head of a model gets (MInference, algorithm 1).

    from minference_ext.models import load_model
    from minference_ext.search import SearchSettings, key_value_prompts, search_patterns

    loaded = load_model("/models/Qwen2.5-7B-Instruct")
    prompts = key_value_prompts(loaded, length=30000, samples=1, seed=0)
    result = search_patterns(loaded.model, prompts, SearchSettings(), name=loaded.name)
    result.save(Path("patterns.json"))  # and patterns.search.json beside it
    minference_ext.transformers.configure(loaded.model, result.patterns)

`minference search` is the same on the command line; search.py says what happens, choose.py how a
head's pattern is chosen, equal_cost.py how candidates are brought to equal cost.
"""

from __future__ import annotations

from .compare import Comparison, compare_patterns
from .equal_cost import Equalised, equalise, size_ladder, tile_cost, time_cost
from .prompts import Prompt, key_value_prompts, text_prompts
from .results import HeadResult, SearchResult
from .search import search_patterns
from .settings import CANDIDATES, SearchSettings

__all__ = [
    "CANDIDATES",
    "Comparison",
    "Equalised",
    "HeadResult",
    "Prompt",
    "SearchResult",
    "SearchSettings",
    "compare_patterns",
    "equalise",
    "key_value_prompts",
    "search_patterns",
    "size_ladder",
    "text_prompts",
    "tile_cost",
    "time_cost",
]
