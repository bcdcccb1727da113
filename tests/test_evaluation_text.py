"""Text tasks: every prompt holds its answers where it should and is as long as it may be, whoever
reads it finds them, data that is missing or broken is named, and the command runs them on a model
with a tokenizer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from minference_ext import cli
from minference_ext.command_line import Failure
from minference_ext.evaluation import Settings, Task, check_tasks, evaluate, parse_tasks
from minference_ext.evaluation import completion as completion_module
from minference_ext.evaluation.catalog import make_tasks
from minference_ext.evaluation.completion import Completion, Draft, Encoder, most_units
from minference_ext.evaluation.data import digest
from minference_ext.evaluation.haystack import NOISE, hide, sentences_of, take
from minference_ext.evaluation.infinitebench import KINDS, without_middle
from minference_ext.evaluation.ruler import NAMES, NEEDLES
from minference_ext.evaluation.words import compound_words, letter_words, uuids
from minference_ext.models import LoadedModel, load_model

from tests import text_model

Capture = pytest.CaptureFixture[str]
OFFLINE = [name for name in NAMES if name in ("vt", "cwe", "fwe") or (
    name in NEEDLES and NEEDLES[name].haystack != "essay"
)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_model.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Essays, and questions in the layouts of SQuAD and HotpotQA."""
    path = tmp_path_factory.mktemp("data")
    random = Random(3)
    lines = [" ".join(compound_words(random.randint(3, 9), random)) + "." for _ in range(400)]
    (path / "a.txt").write_text(" ".join(lines[:200]), encoding="utf-8")
    (path / "b.txt").write_text("\n".join(lines[200:]), encoding="utf-8")
    facts: list[dict[str, Any]] = [
        {
            "context": f"The capital of {country} is {city}.",
            "qas": [
                {
                    "question": f"What is the capital of {country}?",
                    "answers": [{"text": city}, {"text": city}],
                    "is_impossible": False,
                },
                {"question": "And of nowhere?", "answers": [], "is_impossible": True},
            ],
        }
        for country, city in zip(
            letter_words(60, 6, random), letter_words(60, 6, random), strict=True
        )
    ]
    squad = {"data": [{"paragraphs": facts[:30]}, {"paragraphs": facts[30:]}]}
    (path / "dev-v2.0.json").write_text(json.dumps(squad), encoding="utf-8")
    hotpot = [
        {
            "question": fact["qas"][0]["question"],
            "answer": fact["qas"][0]["answers"][0]["text"],
            "context": [["Capitals", [fact["context"]]], ["Else", ["Rivers are long."]]],
        }
        for fact in facts
    ]
    (path / "hotpotqa.json").write_text(json.dumps(hotpot), encoding="utf-8")
    return path


def task_of(name: str, loaded: LoadedModel, **settings: Any) -> Task:
    (task,) = make_tasks(parse_tasks(name), loaded, Settings(**{"samples": 2, **settings}))
    return task


def prompts_of(task: Task, length: int) -> list[Completion]:
    prompts = [task.prompt(length, case) for case in task.cases(length)]
    assert all(isinstance(prompt, Completion) for prompt in prompts)
    return [prompt for prompt in prompts if isinstance(prompt, Completion)]


# ---- Readers: each finds the answer in the text of the prompt ------------------------------------


def read_niah(text: str) -> str:
    city = re.findall(r"What is the special magic (\w+) number\?", text)[-1]
    (number,) = re.findall(rf"The special magic {city} number is (\d+)\.", text)
    return str(number)


def read_key_value(text: str) -> str:
    body, _, question = text.partition("\n\nKey: ")
    pairs = json.loads(body[body.index("{") :])
    assert len(pairs) > 2
    return str(pairs[question.split('"')[1]])


def read_variables(text: str) -> str:
    text = text.rpartition("Follow the assignments")[2]  # behind the example
    value = re.findall(r"have the value (\d+)\?", text)[0]
    known: dict[str, str] = {}
    for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", text):
        known[name] = known.get(source, source)
    return " ".join(name for name, found in known.items() if found == value)


def read_magic_values(text: str) -> str:
    keys = re.findall(r"all the special magic values for (.+) in the text\?", text)[0].split(", ")
    values = dict[str, list[str]]()
    for key, value in re.findall(r"magic values for (\S+) is: (\S+)\.", text):
        values.setdefault(key, []).append(value)
    return " ".join(value for key in keys for value in values[key])


def read_common_words(text: str) -> str:
    text = text.rpartition("Some words of the following")[2]
    counts = Counter(re.findall(r"\d+\. (\S+)", text)).most_common(11)
    assert counts[9][1] == 30
    assert counts[10][1] == 3
    return " ".join(word for word, _ in counts[:10])


def read_frequent_words(text: str) -> str:
    body = text.split("\n\n")[1]
    counts = Counter(word for word in body.split() if word != "...").most_common(4)
    assert counts[2][1] > counts[3][1]
    # Shares of rank ** -2 among all ranks: the second to fourth.
    total = len(body.split())
    for rank, (_, count) in enumerate(counts[:3], 2):
        assert count / total == pytest.approx(6 / 9.87 / rank**2, rel=0.2)
    return " ".join(word for word, _ in counts[:3])


def read_documents(text: str) -> str:
    question = re.findall(r"Question: What is the capital of (\w+)\?", text)[0]
    numbers = [int(number) for number in re.findall(r"^Document (\d+):$", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3
    city = re.findall(rf"The capital of {question} is (\w+)", text)[0]
    return f"It is {city.upper()}."


READERS: dict[str, Callable[[str], str]] = {
    "niah": read_niah,
    "kv_retrieval": read_key_value,
    "variable_tracking": read_variables,
    **{f"ruler:{name}": read_magic_values for name in NEEDLES},
    "ruler:vt": read_variables,
    "ruler:cwe": read_common_words,
    "ruler:fwe": read_frequent_words,
    "ruler:qa_1": read_documents,
    "ruler:qa_2": read_documents,
}
NEED_DATA = {f"ruler:{name}" for name in NAMES if name not in OFFLINE}
LENGTHS = {"ruler:cwe": 4096}
#: References of one prompt, as the papers have them.
NUM_REFERENCES = {
    "variable_tracking": 5, "ruler:vt": 5, "ruler:cwe": 10, "ruler:fwe": 3,
    "ruler:niah_multivalue": 4, "ruler:niah_multiquery": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_a_reader_finds_the_answer(
    name: str, loaded: LoadedModel, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(name, loaded, data=data if name in NEED_DATA else None, depths=(0.0, 0.4, 1.0))
    length = LENGTHS.get(name, 1500)
    prompts = prompts_of(task, length)
    assert len(prompts) == (6 if name == "niah" else 2)

    seen: list[str] = []

    def reader(loaded: LoadedModel, ids: list[int], new_tokens: int) -> str:
        text = loaded.tokenizer.decode(ids, skip_special_tokens=True)
        seen.append(text)
        assert len(ids) + new_tokens <= length
        return READERS[name](text)

    def silent(loaded: LoadedModel, ids: list[int], new_tokens: int) -> str:
        return "I do not know."

    monkeypatch.setattr(completion_module, "generate", reader)
    for prompt in prompts:
        (answer,) = prompt.answers(loaded)
        assert answer.score == 1.0
        assert len(prompt.references) == NUM_REFERENCES.get(name, 1)
    assert len(set(seen)) == len(prompts)
    monkeypatch.setattr(completion_module, "generate", silent)
    (answer,) = prompts[0].answers(loaded)
    assert answer.score == 0.0
    assert answer.answer == " | ".join(prompts[0].references)


@pytest.mark.parametrize("name", READERS)
def test_prompts_fill_the_length_and_come_from_the_seed(
    name: str, loaded: LoadedModel, data: Path
) -> None:
    settings = {"data": data if name in NEED_DATA else None, "depths": (0.5,), "samples": 1}
    task = task_of(name, loaded, **settings)
    length = LENGTHS.get(name, 1501)
    (prompt,) = prompts_of(task, length)
    used = len(prompt.ids) + prompt.new_tokens
    assert length - 90 < used <= length  # a unit, the longest being a pair of UUIDs
    assert prompts_of(task_of(name, loaded, **settings), length) == [prompt]
    assert prompts_of(task_of(name, loaded, **settings, seed=1), length) != [prompt]
    calibration = task.calibration(length)
    assert isinstance(calibration, Completion)
    assert calibration.ids != prompt.ids
    with pytest.raises(Failure, match=rf"{name}: a length of 80 tokens is too short; the shortest"):
        task.prompt(80, task.cases(80)[0])


def test_needles_are_at_their_depths(loaded: LoadedModel, data: Path) -> None:
    depths = (0.0, 0.25, 0.5, 0.9, 1.0)
    for path in (None, data):
        prompts = prompts_of(task_of("niah", loaded, data=path, samples=1, depths=depths), 1400)
        for prompt, depth in zip(prompts, depths, strict=True):
            text = loaded.tokenizer.decode(prompt.ids, skip_special_tokens=True)
            _, body, _ = text.split("\n\n") if path is None else re.split(r"\n\n", text)
            needle = re.search(r"The special magic \w+ number is \d+\.", body)
            assert needle is not None
            before, after = body[: needle.start()], body[needle.end() :]
            share = len(before) / (len(before) + len(after))
            longest = max(map(len, sentences_of(before + after))) / len(before + after)
            assert depth - longest - 0.01 <= share <= depth + 0.01
            assert before == "" or before.endswith((". ", ".\n"))
            assert prompt.depth == depth
            (tokens_before,) = [len(loaded.tokenizer(before)["input_ids"])]
            assert abs(tokens_before / len(prompt.ids) - depth) < 0.15


# ---- Parts ---------------------------------------------------------------------------------------


def test_hiding_keeps_sentences_whole_and_needles_in_order() -> None:
    text = "Pi is 3.14 or so. Then it rains. At last."
    sentences = sentences_of(text)
    assert sentences == ("Pi is 3.14 or so.", " Then it rains.", " At last.")
    assert hide(sentences, []) == text
    assert hide(sentences, [(0.0, "A."), (0.0, "B."), (1.0, "C.")]) == f"A. B. {text} C."
    assert hide(sentences, [(0.5, "X.")]) == "Pi is 3.14 or so. X. Then it rains. At last."
    assert "".join(take(sentences, 4)) == f"{text} Pi is 3.14 or so."
    assert "".join(take(NOISE, 6)) == "".join(NOISE) + f" {NOISE[0]}"
    assert hide([], [(0.5, "X."), (0.5, "Y.")]) == "X. Y."


def test_words_are_distinct() -> None:
    for count in (1, 1000, 12_000):
        words = compound_words(count, Random(1))
        assert len(set(words)) == count
        assert all(re.fullmatch(r"[a-z]+(-[a-z]+){1,2}", word) for word in words)
    assert words == compound_words(12_000, Random(1))
    assert len(set(uuids(100, Random(1)))) == 100


@pytest.mark.parametrize(
    "tokens_of",
    [
        lambda units: 7 + 3 * units,
        lambda units: 7 + units // 5,
        lambda units: units * units,
        lambda units: 100 * units + sum(Random(units).choices(range(90))),
        lambda units: 5 + (0 if units < 900 else 10**6),
    ],
)
def test_most_units(tokens_of: Callable[[int], int]) -> None:
    calls: list[int] = []

    def counted(units: int) -> int:
        calls.append(units)
        return int(tokens_of(units))

    for budget in (107, 1000, 99_999):
        calls.clear()
        units = most_units(counted, budget, 0)
        assert tokens_of(units) <= budget < tokens_of(units + 1)
        assert len(calls) < 50
    with pytest.raises(ValueError, match=rf"^{tokens_of(5)}$"):
        most_units(counted, tokens_of(5) - 1, 5)


def test_prompts_without_their_middle() -> None:
    assert without_middle(range(10), 10) == list(range(10))
    assert without_middle(range(10), 5) == [0, 1, 2, 8, 9]
    assert without_middle(range(10), 2) == [0, 9]


def test_chat_prompts(tmp_path: Path, loaded: LoadedModel) -> None:
    draft = Draft("Who?", ("me",), " The answer is")
    with pytest.raises(Failure, match="--chat: the model's tokenizer has no chat template"):
        Encoder(loaded.tokenizer, is_chat=True)
    chat = load_model(str(text_model.save(tmp_path, chat=True)), dtype=torch.float32)
    text = chat.tokenizer.decode(Encoder(chat.tokenizer, is_chat=True).ids(draft))
    assert text == "<|user|>Who?<|end|><|assistant|>The answer is"
    plain = Encoder(chat.tokenizer, is_chat=False).ids(draft)
    assert chat.tokenizer.decode(plain) == "Who? The answer is"
    (prompt,) = prompts_of(task_of("niah", chat, chat=True, samples=1, depths=(0.5,)), 700)
    assert len(prompt.ids) + prompt.new_tokens <= 700
    decoded = chat.tokenizer.decode(prompt.ids)
    assert decoded.startswith("<|user|>A special magic number")
    assert re.search(r"<\|assistant\|>The special magic \w+ number is$", decoded)


def test_decoding_is_greedy_and_without_penalties(loaded: LoadedModel) -> None:
    """The oracle: argmax over a whole forward pass per token. The checkpoint asks for a penalty."""
    assert loaded.model.generation_config.repetition_penalty == 1.5
    loaded.model.set_attn_implementation("sdpa")
    ids = loaded.tokenizer("grass grows on the hill " * 3)["input_ids"]
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(8):
            expected.append(int(loaded.model(torch.tensor([expected])).logits[0, -1].argmax()))
        text = completion_module.generate(loaded, ids, 8)
    assert text == loaded.tokenizer.decode(expected[len(ids) :], skip_special_tokens=True)


def test_decoding_reads_the_prompt_once(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a checkpoint that forbids a cache: every token would prefill anew, sparsely."""
    monkeypatch.setattr(loaded.model.generation_config, "use_cache", False)
    lengths: list[int] = []
    hook = loaded.model.model.register_forward_pre_hook(
        lambda module, arguments, keywords: lengths.append(keywords["input_ids"].shape[1]),
        with_kwargs=True,
    )
    with torch.inference_mode():
        completion_module.generate(loaded, list(range(5, 105)), 4)
    hook.remove()
    assert lengths == [100, 1, 1, 1]


# ---- Data ----------------------------------------------------------------------------------------

EXAMPLES: dict[str, dict[str, Any]] = {
    "passkey": {"input": "What is the pass key? The pass key is", "answer": ["71432"]},
    "number_string": {"input": "The sequence of digits is", "answer": ["2200012222"]},
    "kv_retrieval": {"input": 'Key: "a"\nThe value is: ', "answer": ["c3f5-11"]},
    "longbook_sum_eng": {"answer": ["They walk. They rest."]},
    "longbook_qa_eng": {"input": "Who walks?", "answer": ["Anna", "Miss Anna"]},
    "longbook_choice_eng": {
        "input": "Who walks?",
        "answer": ["Ben"],
        "options": ["Anna", "Ben", "Carl", "Dora"],
    },
    "longdialogue_qa_eng": {"input": "$$MASK$$", "answer": ["ANNA"]},
    "longbook_qa_chn": {"input": "谁在走路？", "answer": ["安娜"]},
    "code_debug": {"answer": ["f2", "B"], "options": ["f1", "f2", "f3", "f4"]},
    "math_find": {"input": "What is the largest number?", "answer": 42},
}
RIGHT = {
    "passkey": " 71432.",
    "number_string": "2200012222",
    "kv_retrieval": '"c3f5-11"}',
    "longbook_sum_eng": "They walk. They rest.",
    "longbook_qa_eng": "Anna.",
    "longbook_choice_eng": "B. Ben",
    "longdialogue_qa_eng": "Anna, I think",
    "longbook_qa_chn": "安娜。",
    "code_debug": "B",
    "math_find": "42.0",
}


@pytest.fixture(scope="module")
def infinitebench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("infinitebench")
    assert list(EXAMPLES) == list(KINDS)
    for name, example in EXAMPLES.items():
        defaults = {"context": "They walk along the road. " * 200, "input": "", "options": []}
        entries = [{"id": i, **defaults, **example} for i in range(3)]
        text = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        (path / f"{name}.jsonl").write_text(f"{text}\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", EXAMPLES)
def test_infinitebench(
    name: str, loaded: LoadedModel, infinitebench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(f"infinitebench:{name}", loaded, data=infinitebench, samples=None)
    length = KINDS[name].new_tokens + 300
    prompts = prompts_of(task, length)
    assert len(prompts) == 3
    assert len(prompts[0].ids) == 300  # cut exactly
    text = loaded.tokenizer.decode(prompts[0].ids)
    assert str(EXAMPLES[name].get("input", "")) in text
    for option in EXAMPLES[name].get("options", []):
        assert re.search(rf"^[A-D]\. {option}$", text, re.MULTILINE)
    long = prompts_of(task, 20_000)[0]
    assert loaded.tokenizer.decode(long.ids).count("They walk along the road.") == 200

    said = [RIGHT[name], ""]
    monkeypatch.setattr(completion_module, "generate", lambda *_: said.pop(0))
    assert [prompts[0].answers(loaded)[0].score for _ in range(2)] == [1.0, 0.0]
    with pytest.raises(Failure, match="is too short; "):
        task.prompt(KINDS[name].new_tokens, task.cases(1)[0])


@pytest.mark.parametrize("answer", ["f2", ["f2"], ["f2", "B"], ["f2 ", "B"]])
def test_right_options_as_examples_give_them(
    answer: object, loaded: LoadedModel, tmp_path: Path
) -> None:
    example = {"id": 0, "context": "", "input": "", "answer": answer, "options": ["f1", "f2"]}
    (tmp_path / "code_debug.jsonl").write_text(json.dumps(example), encoding="utf-8")
    (prompt,) = prompts_of(task_of("infinitebench:code_debug", loaded, data=tmp_path), 300)
    letter, text = prompt.references
    assert (letter, text.strip()) == ("B", "f2")


def test_infinitebench_as_published_numbers_of_new_tokens() -> None:
    tokens = [kind.new_tokens for kind in KINDS.values()]
    assert tokens == [15, 20, 80, 1200, 40, 40, 40, 40, 5, 3]


def test_infinitebench_calibrates_on_what_is_not_asked(
    loaded: LoadedModel, infinitebench: Path, tmp_path: Path
) -> None:
    entries = [
        {"id": i, "context": f"{i} " * 9, "input": "", "answer": [str(i)], "options": []}
        for i in range(3)
    ]
    (tmp_path / "passkey.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    for samples, expected in ((1, "1"), (2, "2"), (3, "0"), (None, "0")):
        task = task_of("infinitebench:passkey", loaded, data=tmp_path, samples=samples)
        calibration = task.calibration(200)
        assert isinstance(calibration, Completion)
        assert calibration.references == (expected,)


@pytest.mark.parametrize(
    ("task", "files", "words"),
    [
        ("infinitebench:passkey", {}, r"needs passkey.jsonl in .*; fetch it from the Hugging Face"),
        ("infinitebench", {"passkey.jsonl": "{}"}, "infinitebench:number_string needs number_str"),
        ("infinitebench:passkey", {"passkey.jsonl": "\n"}, "passkey.jsonl is empty"),
        ("infinitebench:passkey", {"passkey.jsonl": "\n{"}, "passkey.jsonl, line 2: no JSON"),
        ("infinitebench:passkey", {"passkey.jsonl": '{"id": 1}'}, "line 1: lacks context, input"),
        ("infinitebench:code_debug", {"code_debug.jsonl": json.dumps(
            {"id": 1, "context": "", "input": "", "answer": ["f9"], "options": ["f1"]}
        )}, r"example 0: the answer \['f9'\] is none of the options \['f1'\]"),
        ("ruler:niah_single_2", {}, "ruler:niah_single_2 needs text: --data is .*, a folder with"),
        ("ruler:niah_single_2", {"a.txt": " "}, "needs text: --data is .*, where all is empty"),
        ("ruler:qa_1", {"a.txt": "x"}, r"ruler:qa_1 needs dev-v2.0.json .*; fetch it from https:"),
        ("ruler:qa_1", {"squad.json": "{}"}, r"squad.json is not laid out as https.*KeyError"),
        ("ruler:qa_1", {"squad.json": '{"data": []}'}, "has 0 questions about 0 documents"),
        ("ruler:qa_2", {"hotpotqa.json": "["}, "hotpotqa.json is no JSON"),
        ("niah", {}, "niah needs text: --data is .*, a folder without .txt files"),
        ("pg19", {}, "pg19 needs text: --data is .*, a folder without .txt files"),
        ("pg19", {"a.txt": "too short"}, "pg19: no text of --data has 512 tokens; the longest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_missing_and_broken_data(
    task: str, files: dict[str, str], words: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    arguments = (task, "--model", str(folder), "--data", str(tmp_path), "--lengths", "512")
    assert cli.main(["eval", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.search(words, captured.err)


def test_text_that_is_not_utf8(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(Failure, match=r"a\.txt is not text in UTF-8"):
        check_tasks(parse_tasks("niah"), Settings(data=tmp_path))


def test_a_digest_follows_the_files_that_tasks_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.", encoding="utf-8")
    before, of_file = digest(tmp_path), digest(tmp_path / "a.txt")
    (tmp_path / "results.json").write_text("{}", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    assert digest(tmp_path) == before
    (tmp_path / "b.txt").write_text("", encoding="utf-8")
    assert digest(tmp_path) != before
    (tmp_path / "b.txt").rename(tmp_path / "c")
    assert digest(tmp_path) == before
    (tmp_path / "a.txt").write_text("One. Two.", encoding="utf-8")
    assert digest(tmp_path) != before
    assert digest(tmp_path / "a.txt") != of_file


def test_data_that_changed_is_other_data(
    folder: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    path, texts = tmp_path / "r.json", tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text((data / "a.txt").read_text(encoding="utf-8"), encoding="utf-8")
    arguments = (
        "eval", "pg19", "--model", str(folder), "--data", str(texts), "--out", str(path),
        "--lengths", "200", "--methods", "sdpa",
    )  # fmt: skip
    assert cli.main(list(arguments)) == 0
    (texts / "0.txt").write_text((data / "b.txt").read_text(encoding="utf-8"), encoding="utf-8")
    capsys.readouterr()
    assert cli.main(list(arguments)) == 1
    assert "r.json has results of --data as its files were before" in capsys.readouterr().err


def test_ruler_alone_is_what_there_is_data_for(
    loaded: LoadedModel, data: Path, tmp_path: Path
) -> None:
    def names(path: Path | None) -> list[str]:
        tasks = make_tasks(parse_tasks("ruler"), loaded, Settings(data=path))
        return [task.name.removeprefix("ruler:") for task in tasks]

    assert names(None) == OFFLINE
    assert len(names(None)) == 6
    assert names(data) == list(NAMES)
    assert len(NAMES) == 13
    (tmp_path / "essay.txt").write_text("One. Two.", encoding="utf-8")
    assert names(tmp_path / "essay.txt") == [name for name in NAMES if not name.startswith("qa")]


def test_tasks_that_need_a_tokenizer_or_the_retrieval_model(loaded: LoadedModel) -> None:
    with pytest.raises(Failure, match="mid_prompt reads its answers inside the prompt: it needs"):
        task_of("mid_prompt", loaded)


# ---- The command ---------------------------------------------------------------------------------


def test_command_on_text(folder: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Scores of a random model are nothing; that every row is there is."""
    path = tmp_path / "r.json"
    arguments = (
        "niah,ruler:fwe,pg19", "--model", str(folder), "--dtype", "float32", "--lengths", "600",
        "--samples", "1", "--depths", "2", "--data", str(data),
        "--methods", "dense,static(30,8)", "--out", str(path),
    )  # fmt: skip
    assert cli.main(["eval", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 2 * (2 + 1 + 1) + 3  # three calibration prompts
    assert "niah, 600 tokens, static(30,8), calibration: " in captured.err
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [(row["task"], row["method"], row["depth"]) for row in rows] == [
        ("niah", "dense", 0.0),
        ("niah", "dense", 1.0),
        ("niah", "static(30,8)", 0.0),
        ("niah", "static(30,8)", 1.0),
        ("ruler:fwe", "dense", None),
        ("ruler:fwe", "static(30,8)", None),
        ("pg19", "dense", None),
        ("pg19", "static(30,8)", None),
    ]
    assert [row["computed_share"] is not None for row in rows] == [True, False] * 2 + [True] * 4
    assert all(row["prediction"] for row in rows[:6])
    assert rows[6]["score"] > 100  # perplexity of a random model over 2048 words


def test_dense_and_sdpa_say_the_same(loaded: LoadedModel) -> None:
    settings = Settings(samples=1, depths=(0.5,))
    rows = evaluate(loaded, "niah", "dense,sdpa", [400], settings=settings)
    assert rows[0].prediction == rows[1].prediction
    assert dataclasses.replace(rows[0], seconds=0.0, method="", computed_share=None) == (
        dataclasses.replace(rows[1], seconds=0.0, method="", computed_share=None)
    )
