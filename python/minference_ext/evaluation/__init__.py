"""Evaluation of methods on models: needles, RULER, InfiniteBench, perplexity, lm_eval.

    from minference_ext.evaluation import Results, Settings, evaluate, identity, summary
    from minference_ext.models import load_model

    loaded = load_model("retrieval")
    rows = evaluate(loaded, "niah,mid_prompt", "dense,vertical_slash(100,16)", [4096, 8192])
    print(summary(rows))

The prefill runs a method through Transformers, decoding is greedy and dense. A `Row` is one answer;
`Results.open` keeps rows in a file, with which a run that was interrupted goes on. Prompts depend
on the seed, the length and the tokenizer alone, so all methods get the same ones.

A method that learns from an earlier prompt (`has_memory`) reads one of the same task and length,
with other random numbers, before its prompts; what it learned for another task is forgotten.
"""

from __future__ import annotations

from .catalog import FAMILIES, Family, TaskName, check_tasks, parse_tasks
from .perplexity import token_losses
from .results import Results, Row
from .runner import Contender, evaluate, identity, parse_contenders
from .summary import mean_score, mean_seconds, needle_maps, summary
from .task import Answer, Case, Prompt, Settings, Task, even_depths

__all__ = [
    "FAMILIES",
    "Answer",
    "Case",
    "Contender",
    "Family",
    "Prompt",
    "Results",
    "Row",
    "Settings",
    "Task",
    "TaskName",
    "check_tasks",
    "evaluate",
    "even_depths",
    "identity",
    "mean_score",
    "mean_seconds",
    "needle_maps",
    "parse_contenders",
    "parse_tasks",
    "summary",
    "token_losses",
]
