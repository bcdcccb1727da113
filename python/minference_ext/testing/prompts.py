"""Prompts for the retrieval model: BOS, random filler with assignments in it, then the questions.

An assignment is [K, V, SEP] and a question [SEP, K]: the answer is read from the logits at K's
position in the question. Questions are the last tokens, inside the 64 rows from which
vertical_slash estimates its index; those of `questions_in_the_middle` are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from .model import BOS_TOKEN, MAX_POSITIONS, SEP_TOKEN, RetrievalSpec, _require

_ASSIGNMENT_TOKENS = 3
_QUESTION_TOKENS = 2
MAX_QUESTIONS = 64 // _QUESTION_TOKENS


@dataclass(frozen=True)
class RetrievalPrompt:
    """A prompt and its right answers. Entry q of each tuple belongs to question q.

    input_ids: int64 [1, length].
    asked: key tokens. answers: the token that each must yield.
    answer_positions: where the logits that predict the answer are.
    evidence_positions: where the tokens lie that must be looked up, one per hop, the answer last.
    """

    input_ids: torch.Tensor
    asked: tuple[int, ...]
    answers: tuple[int, ...]
    answer_positions: tuple[int, ...]
    evidence_positions: tuple[tuple[int, ...], ...]


def single_needle(
    length: int, depth: float, seed: int = 0, *, spec: RetrievalSpec | None = None
) -> RetrievalPrompt:
    """One assignment at `depth` (0: right after BOS, 1: right before the question)."""
    return needles_at_depths(length, (depth,), seed, spec=spec)


def needles_at_depths(
    length: int, depths: Sequence[float], seed: int = 0, *, spec: RetrievalSpec | None = None
) -> RetrievalPrompt:
    """One assignment and one question per depth, in the order of `depths`.

    One prefill answers all.
    """
    return _needles(length, length, depths, seed, RetrievalSpec() if spec is None else spec)


def questions_in_the_middle(
    length: int,
    depths: Sequence[float],
    asked_at: float = 0.5,
    seed: int = 0,
    *,
    spec: RetrievalSpec | None = None,
) -> RetrievalPrompt:
    """One assignment and one question per depth; filler follows the questions.

    What a method estimates from the prompt's last queries knows nothing of these questions. One
    that estimates for every chunk of queries sees them among the last 64 of a chunk, if they end
    with it: at a multiple of its `estimate_every`.

    depths: within the tokens before the questions (0: right after BOS, 1: right before them).
    asked_at: the questions end at token round(asked_at * length); 1 makes `needles_at_depths`.
    """
    spec = RetrievalSpec() if spec is None else spec
    _require(0.0 <= asked_at <= 1.0, "asked_at", asked_at, "0..1")
    return _needles(length, round(asked_at * length), depths, seed, spec)


def _needles(
    length: int, questions_end: int, depths: Sequence[float], seed: int, spec: RetrievalSpec
) -> RetrievalPrompt:
    _require(1 <= len(depths) <= MAX_QUESTIONS, "len(depths)", len(depths), f"1..{MAX_QUESTIONS}")
    for depth in depths:
        _require(0.0 <= depth <= 1.0, "depths", depth, "0..1")
    behind = length - questions_end
    last_begin = _body_tokens(length, len(depths), len(depths), behind) - _ASSIGNMENT_TOKENS
    begins = [round(depth * last_begin) for depth in depths]
    in_order = sorted(begins)
    for left, right in itertools.pairwise(in_order):
        _require(
            right - left >= _ASSIGNMENT_TOKENS,
            "depths",
            f"two that are {right - left} tokens apart at length {length}",
            f"{_ASSIGNMENT_TOKENS} tokens or more apart",
        )
    generator = torch.Generator().manual_seed(seed)
    keys = _distinct(spec.key_tokens, len(depths), generator, "len(depths)")
    values = _distinct(spec.value_tokens, len(depths), generator, "len(depths)")
    chains = [[index] for index in range(len(depths))]
    assignments = list(zip(keys, values, strict=True))
    return _compose(length, begins, assignments, chains, spec, generator, behind)


def key_value_pairs(
    length: int,
    num_pairs: int,
    asked: Sequence[int] | None = None,
    seed: int = 0,
    *,
    spec: RetrievalSpec | None = None,
) -> RetrievalPrompt:
    """`num_pairs` assignments of distinct keys to distinct values, at random places.

    asked: which pairs to ask for, counted from the start of the prompt; None asks for up to 8,
    drawn by `seed`.
    """
    spec = RetrievalSpec() if spec is None else spec
    generator = torch.Generator().manual_seed(seed)
    keys = _distinct(spec.key_tokens, num_pairs, generator, "num_pairs")
    values = _distinct(spec.value_tokens, num_pairs, generator, "num_pairs")
    if asked is None:
        asked = torch.randperm(num_pairs, generator=generator)[:8].tolist()
    _require(1 <= len(asked) <= MAX_QUESTIONS, "len(asked)", len(asked), f"1..{MAX_QUESTIONS}")
    for index in asked:
        _require(0 <= index < num_pairs, "asked", index, f"0..{num_pairs - 1}")
    begins = _random_begins(length, num_pairs, len(asked), generator)
    chains = [[index] for index in asked]
    return _compose(length, begins, list(zip(keys, values, strict=True)), chains, spec, generator)


def variable_tracking(
    length: int,
    hops: int,
    seed: int = 0,
    *,
    num_chains: int = 1,
    spec: RetrievalSpec | None = None,
) -> RetrievalPrompt:
    """X1 = value, X2 = X1, ..., in this order at random places; asks for the last variable's value.

    num_chains: interleaved chains, each with a value and a question of its own.

    Needs a model with spec.hops >= hops; one with fewer stops at a variable on the way.
    """
    spec = RetrievalSpec() if spec is None else spec
    _require(hops >= 1, "hops", hops, "at least 1")
    _require(1 <= num_chains <= MAX_QUESTIONS, "num_chains", num_chains, f"1..{MAX_QUESTIONS}")
    generator = torch.Generator().manual_seed(seed)
    variables = _distinct(spec.key_tokens, hops * num_chains, generator, "hops * num_chains")
    values = _distinct(spec.value_tokens, num_chains, generator, "num_chains")
    # Assignment i belongs to chain i % num_chains, so the chains interleave.
    assignments = list(zip(variables, values + variables, strict=False))
    begins = _random_begins(length, len(assignments), num_chains, generator)
    chains = [
        list(range((hops - 1) * num_chains + chain, -1, -num_chains)) for chain in range(num_chains)
    ]
    return _compose(length, begins, assignments, chains, spec, generator)


def answer_logits(model: LlamaForCausalLM, prompt: RetrievalPrompt) -> torch.Tensor:
    """Logits at the answer positions, [num_questions, vocab_size], from one prefill.

    No other logits are computed.
    """
    device = model.device
    output = model(
        input_ids=prompt.input_ids.to(device),
        use_cache=False,
        logits_to_keep=torch.tensor(prompt.answer_positions, device=device),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


def retrieved(source: LlamaForCausalLM | torch.Tensor, prompt: RetrievalPrompt) -> list[bool]:
    """Whether each question is answered right.

    source: the model, or its logits [1, rows, vocab_size] or [rows, vocab_size]. The rows are
    either one per question, or the last ones of the prompt (logits_to_keep as an int), enough to
    hold all questions.
    """
    logits = source if isinstance(source, torch.Tensor) else answer_logits(source, prompt)
    if logits.dim() == 3:
        _require(logits.shape[0] == 1, "logits.shape[0]", logits.shape[0], "1")
        logits = logits[0]
    num_questions = len(prompt.answers)
    length = prompt.input_ids.shape[1]
    if logits.shape[0] != num_questions:
        rows_needed = length - min(prompt.answer_positions)
        _require(
            rows_needed <= logits.shape[0] <= length,
            "rows of logits",
            logits.shape[0],
            f"{num_questions} (one per question) or {rows_needed}..{length} (the last rows)",
        )
        first_row = length - logits.shape[0]
        logits = logits[[position - first_row for position in prompt.answer_positions]]
    predicted = logits.argmax(dim=-1).tolist()
    return [token == answer for token, answer in zip(predicted, prompt.answers, strict=True)]


def _body_tokens(
    length: int, num_assignments: int, num_questions: int, behind_questions: int = 0
) -> int:
    """Tokens between BOS and the questions; raises if the assignments do not fit there."""
    body_tokens = length - 1 - _QUESTION_TOKENS * num_questions - behind_questions
    shortest = length - body_tokens + _ASSIGNMENT_TOKENS * num_assignments
    where = f" and {behind_questions} tokens behind them" if behind_questions else ""
    _require(
        shortest <= length <= MAX_POSITIONS,
        "length",
        length,
        f"{shortest}..{MAX_POSITIONS} with this many assignments ({num_assignments}) and questions"
        f"{where}",
    )
    return body_tokens


def _distinct(tokens: range, count: int, generator: torch.Generator, argument: str) -> list[int]:
    _require(1 <= count <= len(tokens), argument, count, f"1..{len(tokens)} (spec's vocabulary)")
    drawn = torch.randperm(len(tokens), generator=generator)[:count]
    return [tokens[index] for index in drawn.tolist()]


def _random_begins(
    length: int, num_assignments: int, num_questions: int, generator: torch.Generator
) -> list[int]:
    """Ascending places of non-overlapping assignments, counted from the start of the body."""
    body_tokens = _body_tokens(length, num_assignments, num_questions)
    num_fillers = body_tokens - _ASSIGNMENT_TOKENS * num_assignments
    fillers_before = torch.randint(num_fillers + 1, (num_assignments,), generator=generator)
    ordered = fillers_before.sort().values.tolist()
    return [count + _ASSIGNMENT_TOKENS * index for index, count in enumerate(ordered)]


def _compose(
    length: int,
    begins: Sequence[int],
    assignments: Sequence[tuple[int, int]],
    chains: Sequence[Sequence[int]],
    spec: RetrievalSpec,
    generator: torch.Generator,
    behind_questions: int = 0,
) -> RetrievalPrompt:
    """Write filler, assignments and questions.

    begins: where in the body each (key, value) goes.
    chains: per question, the assignments to look up in turn.
    behind_questions: tokens of filler after the last question.
    """
    filler = spec.filler_tokens
    ids = torch.randint(filler.start, filler.stop, (length,), generator=generator)
    ids[0] = BOS_TOKEN
    for begin, (key, value) in zip(begins, assignments, strict=True):
        ids[1 + begin : 1 + begin + _ASSIGNMENT_TOKENS] = torch.tensor([key, value, SEP_TOKEN])
    asked = [assignments[chain[0]][0] for chain in chains]
    questions_end = length - behind_questions
    questions_begin = questions_end - _QUESTION_TOKENS * len(chains)
    ids[questions_begin:questions_end:_QUESTION_TOKENS] = SEP_TOKEN
    ids[questions_begin + 1 : questions_end : _QUESTION_TOKENS] = torch.tensor(asked)
    return RetrievalPrompt(
        input_ids=ids[None],
        asked=tuple(asked),
        answers=tuple(assignments[chain[-1]][1] for chain in chains),
        answer_positions=tuple(range(questions_begin + 1, questions_end, _QUESTION_TOKENS)),
        evidence_positions=tuple(tuple(begins[index] + 2 for index in chain) for chain in chains),
    )
