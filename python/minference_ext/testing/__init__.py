"""Retrieval models with weights set by formula, and the prompts that question them.

A sparse prefill is right when the model still finds what it is asked for. Trained checkpoints are
large and may fail for reasons of their own; this model is tiny, needs no download, and retrieves at
any depth up to 1M tokens, so a miss is always the attention's fault.

    model = build_retrieval_model(dtype=torch.bfloat16, attn_implementation="sdpa")
    prompt = needles_at_depths(32768, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert all(retrieved(model, prompt))  # one prefill, five answers
"""

from .model import (
    RetrievalSpec,
    build_retrieval_model,
    default_patterns,
    head_roles,
)
from .prompts import (
    RetrievalPrompt,
    answer_logits,
    key_value_pairs,
    needles_at_depths,
    questions_in_the_middle,
    retrieved,
    single_needle,
    variable_tracking,
)

__all__ = [
    "RetrievalPrompt",
    "RetrievalSpec",
    "answer_logits",
    "build_retrieval_model",
    "default_patterns",
    "head_roles",
    "key_value_pairs",
    "needles_at_depths",
    "questions_in_the_middle",
    "retrieved",
    "single_needle",
    "variable_tracking",
]
