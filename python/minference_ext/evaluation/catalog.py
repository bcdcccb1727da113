"""Tasks by name, what they need, and tasks from text: "niah,ruler:vt,lm_eval:wikitext"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from minference_ext.command_line import Failure
from minference_ext.models import LoadedModel

from . import harness, infinitebench, needle_tasks, perplexity, retrieval_model, ruler
from .data import read_text
from .ruler_questions import QUESTION_SETS, question_file
from .task import Settings, Task

_Check: TypeAlias = Callable[[str, Settings], None]
_Make: TypeAlias = Callable[[str, LoadedModel, Settings], Task]


@dataclass(frozen=True)
class Family:
    """Tasks under one name: one, or several that are named after a colon."""

    name: str
    summary: str
    needs: str
    check: _Check  #: raises Failure where data or packages are missing; needs no model
    make: _Make
    members: tuple[str, ...] = ()  #: all of them, where they are known
    has_members: bool = False
    takes_what_is_there: bool = False  #: the name alone means the members whose data is there


@dataclass(frozen=True)
class TaskName:
    """A task as it was asked for."""

    family: Family
    member: str = ""  #: "" for families of one


def _no_check(member: str, settings: Settings) -> None:
    return None


def _by_model(of_retrieval_model: _Make, of_text: _Make) -> _Make:
    def make(member: str, loaded: LoadedModel, settings: Settings) -> Task:
        has_spec = loaded.spec is not None
        return (of_retrieval_model if has_spec else of_text)(member, loaded, settings)

    return make


def _plain(make: Callable[[LoadedModel, Settings], Task]) -> _Make:
    return lambda member, loaded, settings: make(loaded, settings)


def _check_niah(member: str, settings: Settings) -> None:
    if settings.data is not None:
        read_text("niah", settings.data)


def _check_ruler(member: str, settings: Settings) -> None:
    full_name = f"{ruler.FAMILY}:{member}"
    if member in QUESTION_SETS:
        question_file(member, full_name, settings)
    elif member in ruler.WITH_TEXT:
        read_text(full_name, settings.data)


FAMILIES = (
    Family(
        "niah",
        "One needle at each of --depths.",
        "Any model. --data: a .txt file or a folder of them as the haystack; without, noise.",
        _check_niah,
        _by_model(_plain(retrieval_model.needles), _plain(needle_tasks.needle)),
    ),
    Family(
        "kv_retrieval",
        "The value of one key among as many pairs as fit.",
        "Any model.",
        _no_check,
        _by_model(_plain(retrieval_model.key_values), _plain(needle_tasks.key_values)),
    ),
    Family(
        "variable_tracking",
        "Chains of assignments, followed to their value.",
        "Any model; retrieval:8 follows 8 hops.",
        _no_check,
        _by_model(_plain(retrieval_model.variables), _plain(needle_tasks.variables)),
    ),
    Family(
        "mid_prompt",
        "Needles at --depths before the middle of the prompt, asked for there: what one estimate "
        "from the prompt's last queries cannot know. (Fillers repeat, which scatters diagonals: "
        "thousands of them cover a prompt of 32K tokens, and find needles by chance.)",
        "--model retrieval.",
        _no_check,
        _plain(retrieval_model.questions_before_the_end),
    ),
    Family(
        ruler.FAMILY,
        "RULER, one task or all.",
        "A tokenizer. Six tasks need no data; --data, a .txt file or a folder of them, adds five "
        "whose haystack it is (essays in the paper), and in that folder dev-v2.0.json (SQuAD) adds "
        "qa_1, hotpot_dev_distractor_v1.json (HotpotQA) qa_2. lm_eval:ruler is that of lm_eval.",
        _check_ruler,
        ruler.task,
        ruler.NAMES,
        has_members=True,
        takes_what_is_there=True,
    ),
    Family(
        infinitebench.FAMILY,
        "Ten tasks of InfiniteBench, one or all.",
        f"A tokenizer. --data: a folder with the .jsonl files of {infinitebench.SOURCE}.",
        infinitebench.check,
        infinitebench.task,
        infinitebench.NAMES,
        has_members=True,
    ),
    Family(
        perplexity.NAME,
        "Perplexity of the first tokens of long texts.",
        "A tokenizer. --data: a .txt file or a folder of them, such as those of deepmind/pg19.",
        lambda member, settings: perplexity.check(settings),
        _plain(perplexity.task),
    ),
    Family(
        harness.FAMILY,
        "Any task of lm-evaluation-harness, as in lm_eval:wikitext; its prompts are cut to length.",
        'A tokenizer, pip install "minference_ext[eval]", and often a download. --data: a folder '
        "with tasks of your own.",
        harness.check,
        harness.task,
        has_members=True,
    ),
)


def parse_tasks(text: str) -> list[TaskName]:
    """Tasks from a list with commas; a family's name alone stands for all of its tasks.

    Raises:
        ValueError: an unknown name.
    """
    families = {family.name: family for family in FAMILIES}
    names = []
    for item in dict.fromkeys(item.strip() for item in text.split(",")):
        name, colon, member = item.partition(":")
        if name not in families:
            raise ValueError(
                f"{item!r} is no task; `minference eval --list` describes them: "
                f"{', '.join(families)}"
            )
        family = families[name]
        members = family.members
        if colon and not family.has_members:
            raise ValueError(f"{item!r} is no task: {name} is only one")
        if member and members and member not in members:
            raise ValueError(f"{item!r} is no task; {name} has {', '.join(members)}")
        if family.has_members and not members and not member:
            raise ValueError(f"{item!r} needs the name of a task, as in {name}:wikitext")
        names.append(TaskName(family, member))
    return names


def check_tasks(names: Sequence[TaskName], settings: Settings) -> None:
    """Finds data and packages that are missing, before a model is loaded.

    Raises:
        Failure: what is missing, and where it comes from.
    """
    for family, member in _members(names, settings):
        family.check(member, settings)


def make_tasks(names: Sequence[TaskName], loaded: LoadedModel, settings: Settings) -> list[Task]:
    """Raises Failure where the model or its data cannot serve a task."""
    if settings.chat and loaded.tokenizer is None:
        raise Failure(f"--chat: {loaded.name} has no tokenizer, so it has no chat template")
    return [family.make(member, loaded, settings) for family, member in _members(names, settings)]


def _members(names: Sequence[TaskName], settings: Settings) -> list[tuple[Family, str]]:
    """Every task once."""
    found = []
    for name in names:
        family = name.family
        members = (name.member,) if name.member else family.members or ("",)
        if family.takes_what_is_there and not name.member:
            members = tuple(member for member in members if _has_data(family, member, settings))
        found += [(family, member) for member in members]
    return list(dict.fromkeys(found))


def _has_data(family: Family, member: str, settings: Settings) -> bool:
    try:
        family.check(member, settings)
    except Failure:
        return False
    return True
