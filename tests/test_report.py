"""minference report: one file that stands alone, says what was measured, and trusts no text."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from copy import deepcopy
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from minference_ext import cli
from minference_ext.report import html_page, read_record, section_of
from minference_ext.report.pdf import _COLUMNS, _table_lines
from minference_ext.report.records import EvaluationRecord
from minference_ext.report.section import Picture, Section, Table

from . import records

pytest.importorskip("matplotlib", reason="reports have pictures")

Capture = pytest.CaptureFixture[str]
PNG = b"\x89PNG\r\n\x1a\n"
RECORDS: dict[str, dict[str, Any]] = {
    "search": records.search(),
    "evaluation": records.evaluation(),
    "prefill": records.prefill(),
    "attention": records.attention(),
    "observations": records.observations(),
}
_VOID = {"meta", "img", "br", "link", "hr", "input"}


def draw_small(target: Any) -> None:
    from PIL import Image

    Image.new("RGB", (600, 300)).save(target, format="PNG")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small picture in place of all of them."""
    drawn = BytesIO()
    draw_small(drawn)
    monkeypatch.setattr(Picture, "png", lambda _: drawn.getvalue())


class Page(HTMLParser):
    """Tags, attributes and text; every tag that opens must close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("records")
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    for name, path in paths.items():
        path.write_text(json.dumps(RECORDS[name]), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def sections(files: dict[str, Path]) -> dict[str, Section]:
    return {name: section_of(read_record(path)) for name, path in files.items()}


@pytest.fixture(scope="module")
def html(sections: dict[str, Section]) -> str:
    return html_page(list(sections.values()), f"All of {records.MODEL}")


# ---- The page ------------------------------------------------------------------------------------


def test_the_page_stands_alone(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    sources = page.values("src", "srcset", "data", "action", "poster", "background")
    assert len(sources) == page.tags.count("img") > 8
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG)
    links = page.values("href")
    assert links == [f"#section-{number}" for number in range(1, 6)]
    assert {link[1:] for link in links} <= set(page.values("id"))
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    policy = page.values("content")[-1]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_is_for_phones_and_for_the_dark(html: str) -> None:
    page = Page(html)
    assert "width=device-width, initial-scale=1" in page.values("content")
    (style,) = page.texts["style"]
    assert "@media (prefers-color-scheme: dark)" in style
    assert "overflow-x: auto" in style  # of tables
    assert re.search(r"img \{ max-width: 100%; height: auto", style)
    sizes = zip(page.values("width"), page.values("height"), strict=True)
    assert all(200 < int(width) < 1100 and int(height) > 100 for width, height in sizes)


def test_all_sections_are_there(html: str) -> None:
    page = Page(html)
    titles = page.texts["h2"]
    assert titles == [
        f"Search: {records.MODEL}",
        f"Evaluation: {records.MODEL}",
        f"Prefill: {records.MODEL}",
        "Attention: one layer: 8 query heads, 2 kv heads, head_dim 128",
        f"Observations: {records.MODEL}",
    ]
    assert page.texts["a"] == titles
    tables = page.texts["h3"]
    for name in ("Patterns", "Candidates", "Scores by task", "Wrong answers", "Times"):
        assert name in tables
    assert tables.count("What was run") == 5


def test_text_is_escaped(html: str) -> None:
    assert "<script" not in html.lower()
    assert "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&amp;amp;" in html  # an ampersand of the model's name
    page = Page(html)
    assert page.texts["h1"] == page.texts["title"] == [f"All of {records.MODEL}"]


def test_markup_in_every_text_of_a_section() -> None:
    bad = "\"><img src=x onerror='alert(1)'>&"

    section = Section(
        title=bad,
        conclusion=[bad],
        facts=[(bad, bad)],
        pictures=[Picture(bad, draw_small)],
        tables=[Table(bad, (bad, bad), [(bad, bad)], 1, bad)],
    )
    page = Page(html_page([section, section], bad))
    assert page.tags.count("img") == 2  # the two pictures
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.values("alt") == [bad, bad]
    for tag in ("h1", "h2", "h3", "p", "th", "td", "figcaption", "a"):
        assert bad in page.texts[tag]


# ---- Sections ------------------------------------------------------------------------------------


def facts(section: Section) -> dict[str, str]:
    return dict(section.facts)


def table(section: Section, title: str) -> Table:
    return next(found for found in section.tables if found.title == title)


def test_search(sections: dict[str, Section]) -> None:
    """Shares: (10 + 11 + 12 + 13 + 20 + ... + 32 + 100) / 12 %; recall 1 for the dense head."""
    section = sections["search"]
    heads = RECORDS["search"]["heads"]
    share = sum(min(1, head["computed_share"]) for head in heads) / 12
    recall = sum(head["recall"] for head in heads) / 12
    computed, least = section.conclusion
    assert computed == (
        f"The patterns compute {share:.1%} of the pairs of dense attention, mean over 12 heads, "
        f"and keep {recall:.1%} of the attention; 1 is dense."
    )
    assert least == "The least is kept by layer 2, head 2: 89.8% with vertical_slash(32,2048)."
    assert share == pytest.approx((46 + 86 + 93 + 100) / 1200)
    found = facts(section)
    assert found["heads"] == "3 layers x 4 query heads"
    assert found["budget"] == "columns 128, tokens 512"
    assert found["prompts"] == "kv_retrieval, seed 0, 30000 tokens"
    assert found["machine, cpu"] == "a processor"
    assert len(section.pictures) == 2
    patterns = {row[0]: row[1:] for row in table(section, "Patterns").rows}
    assert patterns["dense"] == ("1", "8.3%", "100.0%", "100.0%", "0")
    assert patterns["vertical_slash(30,2048)"][:2] == ("5", "41.7%")
    worst = table(section, "Heads that keep the least").rows[0]
    assert worst[2:4] == ("2", "2")
    candidates = {row[0]: row[1:] for row in table(section, "Candidates").rows}
    assert candidates["a_shape(64,512)"] == ("12", "0", "20.0%", "25.0%", "0.5")


def test_a_search_without_candidates_or_with_heads_left_out(tmp_path: Path) -> None:
    record = deepcopy(RECORDS["search"])
    record["heads"] = [{**record["heads"][1], "candidates": [], "pattern": "top_k(3)"}]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    section = section_of(read_record(path))
    assert "mean over 1 heads" in section.conclusion[0]
    assert "none is dense" in section.conclusion[0]
    assert [found.title for found in section.tables] == ["Patterns", "Heads that keep the least"]


def test_evaluation(sections: dict[str, Section]) -> None:
    section = sections["evaluation"]
    accuracy, perplexity = section.conclusion
    assert accuracy == (
        "accuracy, mean over 2 tasks: dense 1. Lower: vertical_slash(30,800) 0.625 (62% of it), "
        "a_shape(64,512) 0.542 (54% of it)."
    )
    assert perplexity == (
        "perplexity, of pg19: dense 4. Higher: vertical_slash(30,800) 5 (125% of it), "
        "a_shape(64,512) 6 (150% of it)."
    )
    assert [picture.caption for picture in section.pictures] == [
        "Scores by task",
        "Scores by length",
        "niah: found by depth and length of the prompt",
    ]
    assert facts(section)["lengths"] == "4096 tokens, 8192 tokens"
    scores = table(section, "Scores by task")
    assert scores.head[2] == "tracking (accuracy)"
    assert [row[2] for row in scores.rows] == ["1", "0.5", "0.333"]
    cost = table(section, "Cost")
    assert cost.head[2:] == ("s, 4K", "computed, 4K", "s, 8K", "computed, 8K")
    assert cost.rows[0] == ("dense", "16", "0.5", "-", "0.5", "-")
    assert cost.rows[1] == ("vertical_slash(30,800)", "16", *("0.5", "25.0%") * 2)
    wrong = table(section, "Wrong answers")
    assert wrong.note == "10 of 10 answers with a score below 1, the lowest of each method first"
    assert wrong.rows[0][3] == "<script>alert(1)</script> $x$"
    assert [row[1][0] for row in wrong.rows[:4]] == ["v", "a", "v", "a"]  # methods take turns


def test_which_method_does_as_well_with_the_least(tmp_path: Path) -> None:
    shares = {"dense": 1.0, "a_shape(1,2)": 0.5, "top_k(3)": 0.25, "tri_shape": 0.125}
    rows = [
        records.row(method=method, score=0.5 if method == "tri_shape" else 1.0, computed_share=of)
        for method, of in shares.items()
    ]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**RECORDS["evaluation"], "rows": rows}))
    scores, least = section_of(read_record(path)).conclusion
    assert scores == (
        "accuracy, of niah: dense 1. No lower: a_shape(1,2), top_k(3). Lower: tri_shape 0.5 (50% "
        "of it)."
    )
    assert least == (
        "Of those that are no lower than dense, top_k(3) computes the fewest pairs: 25.0%."
    )


def test_an_evaluation_of_one_method_all_right(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record = {**RECORDS["evaluation"], "rows": [records.row(method="a_shape(1,2)")]}
    path.write_text(json.dumps(record))
    section = section_of(read_record(path))
    assert section.conclusion == ["accuracy, of niah: a_shape(1,2) 1."]
    assert [picture.caption for picture in section.pictures] == ["Scores by task"]
    assert [found.title for found in section.tables] == ["Scores by task", "Cost"]


def test_prefill(sections: dict[str, Section]) -> None:
    section = sections["prefill"]
    (sentence,) = section.conclusion
    assert sentence == (
        "vertical_slash(30,800) takes 8 s for 16K tokens, 2.00 times as fast as a prefill with "
        "PyTorch's attention; it is faster than a dense one from 8192 tokens on."
    )
    assert len(section.pictures) == 2
    times = table(section, "Times")
    assert times.head[-5:] == ("peak memory", "estimate", "plan", "attention", "rest")
    assert times.rows[1] == (
        *("vertical_slash(30,800)", "1024", "500 ms", "0.12x", "8 MiB"),
        *("62.5 ms", "62.5 ms", "250 ms", "125 ms"),
    )
    assert times.rows[-2][:3] == ("PyTorch SDPA", "16384", "16 s")


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (None, "; it is not faster than a dense one there."),
        (1024.0, "; it is faster than a dense one at all lengths."),
        (4000.4, "; it is faster than a dense one from 4000 tokens on."),
    ],
)
def test_conclusions_of_times(tmp_path: Path, point: float | None, words: str) -> None:
    record = records.prefill(has_parts=False)
    record["crossovers"] = {"vertical_slash(30,800)": point}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    section = section_of(read_record(path))
    assert section.conclusion[0].endswith(words)
    assert len(section.pictures) == 1  # no breakdown
    record["rows"] = [row for row in record["rows"] if row["method"] == "SDPA"]
    path.write_text(json.dumps(record))
    assert section_of(read_record(path)).conclusion == ["Dense attention alone was timed."]


def test_a_benchmark_of_a_part(tmp_path: Path) -> None:
    """Some layers of a model, and fewer lengths than were asked for."""
    record = {**records.prefill(), "num_layers": 2, "whole_num_layers": 32, "is_complete": False}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    section = section_of(read_record(path))
    assert section.title == f"Prefill: {records.MODEL}, 2 of 32 layers"
    assert section.conclusion[-1] == "The benchmark ended early, behind 16K tokens."


def test_attention(sections: dict[str, Section]) -> None:
    section = sections["attention"]
    (sentence,) = section.conclusion
    assert sentence == (
        "a_shape(16,64) takes 4.1 ms for 2K tokens, 1.00 times as fast as PyTorch's attention; it "
        "is not faster than dense attention there."
    )
    assert facts(section)["subject"].startswith("one layer: 8 query heads")


def test_observations(sections: dict[str, Section]) -> None:
    section = sections["observations"]
    columns, distances = section.conclusion
    assert columns == (
        "The best 128 of 4096 columns hold 62.5% of the attention, mean over 2 heads; as many "
        "columns that were the best of another prompt hold 25.0%."
    )
    assert distances == "Neighbouring entries are most often 3 keys apart."
    rows = table(section, "Attention on columns, mean over the heads").rows
    assert rows[1] == ("128", "3.1%", "62.5%", "25.0%")
    assert "83.7%" in facts(section)["paper"]


# ---- Records -------------------------------------------------------------------------------------


def spoiled(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    record = deepcopy(RECORDS[name])
    change(record)
    return record


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "it is no text"),
        (b"", "it is no JSON"),
        (b"[" * 100000, "it is no JSON"),
        (b"3", "found 3; it must be a record: minference_search, minference_evaluation, "),
        ({"format": "minference_patterns"}, 'format: found "minference_patterns"; readable are '),
        ({"format": ["x"] * 9}, "format: found a list of 9"),
        (
            spoiled("search", lambda r: r.update(version=2)),
            "version of minference_search: found 2; readable are ",
        ),
        (spoiled("search", lambda r: r.pop("version")), "found nothing; readable are "),
        (spoiled("search", lambda r: r.pop("objective")), "'objective' is missing"),
        (spoiled("search", lambda r: r.update(model=7)), "model: found 7; it must be text"),
        (spoiled("search", lambda r: r.update(budget=[])), "budget: found a list of 0; it must be"),
        (spoiled("search", lambda r: r.update(heads={})), "heads: found an object; it must be a"),
        (spoiled("search", lambda r: r.update(heads=[])), "heads: found none"),
        (spoiled("search", lambda r: r.update(prompts=[])), "prompts: found none"),
        (
            spoiled("search", lambda r: r["heads"][3].pop("recall")),
            "heads[3]: 'recall' is missing",
        ),
        (
            spoiled("search", lambda r: r["heads"][3].update(layer="0")),
            'heads[3].layer: found "0"; it must be a whole number',
        ),
        (
            spoiled("search", lambda r: r["heads"][3].update(layer=3)),
            "heads[3]: found layer 3, head 3; the record has 3 layers with 4 heads",
        ),
        (
            spoiled("search", lambda r: r["heads"][3].update(error=True)),
            "heads[3].error: found true; it must be a number",
        ),
        (
            spoiled("search", lambda r: r["heads"][2]["candidates"][1].pop("pattern")),
            "heads[2].candidates[1]: 'pattern' is missing",
        ),
        (
            spoiled("evaluation", lambda r: r["rows"][0].update(score=None)),
            "rows[0].score: found nothing; it must be a number",
        ),
        (
            spoiled("evaluation", lambda r: r["rows"][0].update(prediction=["x"])),
            "rows[0].prediction: found a list of 1; it must be text",
        ),
        (spoiled("evaluation", lambda r: r["rows"].clear()), "rows: found none"),
        (b"[" + b"1" * 5000 + b"]", "it is no JSON"),
        (
            spoiled("search", lambda r: r["heads"][0].update(recall=float("nan"))),
            "heads[0].recall: found NaN; it must be a finite number",
        ),
        (
            spoiled("search", lambda r: r["heads"][0].update(recall=10**400)),
            "heads[0].recall: found 1000",
        ),
        (
            spoiled("prefill", lambda r: r["rows"][0].update(median_seconds=0)),
            "rows[0]: found length 1024, 0 s and speedup 1; all three must be > 0",
        ),
        (
            spoiled("prefill", lambda r: r["rows"][1]["breakdown"].pop("rest")),
            "rows[1].breakdown: 'rest' is missing",
        ),
        (
            spoiled("prefill", lambda r: r["crossovers"].update(x="soon")),
            "crossovers['x']: found \"soon\"; it must be a number",
        ),
        (
            spoiled("prefill", lambda r: r.update(is_complete=1)),
            "is_complete: found 1; it must be true or false",
        ),
        (spoiled("attention", lambda r: r["shape"].pop("head_dim")), "'head_dim' is missing"),
        (
            spoiled("observations", lambda r: r["columns"].insert(0, 0)),
            "columns: found [0, 1, 128, 4096]; it must be ascending counts >= 1",
        ),
        (
            spoiled("observations", lambda r: r["heads"][1]["reused"].pop()),
            "heads[1].reused: found 2 numbers; it must be one for each of the 3 counts",
        ),
        (
            spoiled("observations", lambda r: r["heads"][1]["distances"].pop()),
            "heads[1].distances: found 3 counts; it must be two or more, as many for all heads",
        ),
    ],
)
def test_records_that_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_record(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_records_may_have_more(tmp_path: Path, files: dict[str, Path]) -> None:
    record = spoiled("evaluation", lambda r: r.update(later="x"))
    record["rows"][0].pop("depth")  # null and missing are the same
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    found, whole = read_record(path), read_record(files["evaluation"])
    assert isinstance(found, EvaluationRecord)
    assert isinstance(whole, EvaluationRecord)
    assert found.model == whole.model == records.MODEL
    assert found.rows[1:] == whole.rows[1:]
    assert found.rows[0].depth is None


def test_text_that_is_no_text(capsys: Capture, tmp_path: Path) -> None:
    """Half a character, a control character, a score without end: models and files hold them."""
    rows = [
        records.row(prediction="\ud800\x00\u202e", answer="\ud800", score=0.0),
        records.row(task="text", metric="perplexity", score=float("inf")),
        records.row(task="text", metric="perplexity", score=4.0, method="\ud800"),
    ]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**RECORDS["evaluation"], "model": "\ud800", "rows": rows}))
    for name in ("report.html", "report.pdf"):
        assert run(capsys, path, "--out", tmp_path / name)[0] == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.texts["h2"] == ["Evaluation: ?"]
    assert "perplexity, of text: dense inf. No higher: ? 4." in page.texts["p"]


# ---- The command ---------------------------------------------------------------------------------


def test_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["report", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "minference report" in text.split("examples:\n")[1]
    assert max(map(len, text.splitlines())) <= 110


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    try:
        code: Any = cli.main(["report", *map(str, arguments)])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("undrawn")
def test_html_file(capsys: Capture, tmp_path: Path, files: dict[str, Path]) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    report = folder / "report.html"
    code, out, err = run(capsys, files["prefill"], files["observations"], "--out", report)
    assert (code, out, err) == (0, f"Report: {report}\n", "")
    assert list(folder.iterdir()) == [report]
    page = Page(report.read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["Sparse prefill: Prefill, Observations"]
    assert str(files["prefill"]) in page.texts["td"]


@pytest.mark.usefixtures("undrawn")
def test_two_records_of_one_kind(capsys: Capture, tmp_path: Path, files: dict[str, Path]) -> None:
    """Their titles say which is which."""
    report, copy = tmp_path / "report.html", tmp_path / "copy.json"
    copy.write_bytes(files["attention"].read_bytes())
    run(capsys, files["attention"], copy, "--out", report, "--title", "My <title>")
    page = Page(report.read_text(encoding="utf-8"))
    assert page.texts["title"] == ["My <title>"]
    first, second = page.texts["h2"]
    assert first.endswith(f"head_dim 128 ({files['attention']})")
    assert second.endswith(f"head_dim 128 ({copy})")


@pytest.mark.usefixtures("undrawn")
def test_pdf_file(capsys: Capture, tmp_path: Path, files: dict[str, Path]) -> None:
    """A page or more of text, and one of each picture."""
    report = tmp_path / "report.pdf"
    code, out, _ = run(capsys, files["evaluation"], files["attention"], "--out", report)
    assert (code, out) == (0, f"Report: {report}\n")
    data = report.read_bytes()
    assert data.startswith(b"%PDF")
    assert data.rstrip().endswith(b"%%EOF")
    pages = len(re.findall(rb"/Type /Page\b", data))
    assert pages >= 2 + 4
    assert len(re.findall(rb"/Subtype /Image", data)) >= 4


def test_tables_that_are_wider_than_a_page() -> None:
    """Words go on below, numbers stand in tables of their own; no line is cut."""
    words = ("method", "a long answer " * 20)
    numbers = [f"column {number} of many" for number in range(12)]
    lines = _table_lines([(*words, *numbers), ("dense", "yes\nno", *map(str, range(12)))], 2)
    assert max(map(len, lines)) <= _COLUMNS
    text = "\n".join(lines)
    assert all(text.count(f"column {number} of many") == 1 for number in range(12))
    parts = text.split("\n\n")
    assert len(parts) > 1
    for part in parts:
        assert part.startswith("method")
        assert part.count("a long answer") >= 1
        assert "dense" in part
        assert "yes no" in part
    assert _table_lines([("a", "1"), ("bb", "22")], 1) == ["a    1", "bb  22"]


def test_what_fails(
    capsys: Capture, tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report.html"
    missing = tmp_path / "missing.json"
    code, out, err = run(capsys, files["search"], missing, "--out", report)
    assert (code, out) == (1, "")
    assert "missing.json" in err
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    code, out, err = run(capsys, files["search"], broken, "--out", report)
    assert (code, out) == (1, "")
    assert err.startswith(f"minference: error: {broken}: it is no JSON")
    assert err.count("\n") == 1
    assert not report.exists()
    for arguments, words in (
        (("--out", report), "required: FILE.json"),
        ((files["search"],), "required: --out"),
        ((files["search"], "--out", "x.txt"), "'x.txt' does not end in .html or .pdf"),
        ((files["search"], "--out", "/no/such/x.html"), "/no/such is not a folder"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert words in err
    monkeypatch.setattr("minference_ext.cli.report.is_available", lambda: False)
    code, _, err = run(capsys, files["search"], "--out", report)
    assert code == 2
    assert "--out: pictures need matplotlib: pip install matplotlib" in err
