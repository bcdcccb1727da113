"""The program minference: each sub-command, its JSON beside its text, exit codes, and that an error
is one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import minference_ext
import pytest
import torch
from minference_ext import HeadPattern, ModelPatterns, cli
from minference_ext.cli import info
from minference_ext.model_patterns import published_files
from minference_ext.pattern_text import parse_patterns, pattern_text

CONFIGS = Path(__file__).resolve().parent.parent.parent / "shared" / "head_configs"
COMMANDS = [
    ["info"],
    ["demo"],
    ["patterns"],
    ["patterns", "show"],
    ["patterns", "list"],
    ["patterns", "convert"],
    ["bench"],
    ["bench", "attention"],
    ["bench", "prefill"],
    ["methods"],
    ["search"],
    ["compare"],
    ["eval"],
    ["plot"],
    *(
        ["plot", subject]
        for subject in (
            *("attention", "observations", "patterns", "density"),
            *("times", "breakdown", "retrieval", "scores"),
        )
    ),
    ["report"],
]

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str) -> str:
    """What a command that succeeds prints."""
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def wrong(capsys: Capture, *arguments: str) -> str:
    """The sentence of arguments that make no sense."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert exit_info.value.code == 2
    return sentence(capsys)


def sentence(capsys: Capture) -> str:
    """The one line on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert re.match(r"minference[a-z ]*: error: ", captured.err)
    return captured.err


@pytest.fixture
def patterns_file(tmp_path: Path) -> Path:
    """3 layers x 4 heads: 9 of one pattern, 2 of another, 1 dense."""
    lines, window = HeadPattern.vertical_slash(1000, 6096), HeadPattern.a_shape(100, 800)
    layers = [[lines] * 4, [lines, window, lines, window], [HeadPattern.dense(), *[lines] * 3]]
    path = tmp_path / "patterns.json"
    ModelPatterns(layers, model="somebody/some-model").save(path)
    return path


# ---- The program ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_help(capsys: Capture, command: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    examples = text.split("examples:\n")[1]
    assert " ".join(["minference", *command]) in examples
    assert max(map(len, text.splitlines())) <= 110
    assert "{prog}" not in text


def printed(capsys: Capture, option: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        cli.main([option])
    assert exit_info.value.code == 0
    return capsys.readouterr().out.strip()


def test_printed_facts(capsys: Capture) -> None:
    assert printed(capsys, "--version") == f"minference_ext {minference_ext.__version__}"
    assert (Path(printed(capsys, "--cmake-dir")) / "minferenceConfig.cmake").is_file()
    assert (Path(printed(capsys, "--include-dir")) / "minference" / "minference.h").is_file()
    assert (Path(printed(capsys, "--lib-dir")) / "libminference.so.0").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: command"),
        (["paint"], "invalid choice: 'paint'"),
        (["info", "--colour"], "unrecognized arguments: --colour"),
        (["info", "--json"], "--json: expected one argument"),
        (["info", "--json", "/no/such/folder/x.json"], "/no/such/folder is not a folder"),
        (["info", "--json", "/"], "/ is a folder"),
        (["patterns"], "required: action"),
        (["patterns", "show"], "required: FILE"),
        (["patterns", "show", "x", "--plot", "x.svg"], "'x.svg' does not end in .png"),
        (["patterns", "convert", "a", "b", "--format", "c"], "invalid choice: 'c'"),
        (["bench"], "required: subject"),
        (["bench", "attention", "--lengths", "64,many"], "'many' is not a whole number >= 2"),
        (["bench", "attention", "--patterns", "stripes(3)"], "'stripes(3)' is no pattern; known:"),
        (["bench", "attention", "--patterns", "a_shape(3)"], "it must be (sink, window)"),
        (["bench", "attention", "--patterns", "block_sparse(0)"], "top_k"),
        (["bench", "attention", "--heads", "6", "--kv-heads", "4"], "a multiple of --kv-heads (4)"),
        (["bench", "attention", "--head-dim", "100"], "a multiple of 8 up to 256"),
        (["bench", "attention", "--rounds", "0"], "'0' is not a whole number >= 1"),
        (["bench", "attention", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["bench", "prefill"], "required: --model"),
        (["demo", "--length", "20"], "length: found 20"),
        (["demo", "--plots", "a", "--no-plots"], "not allowed with argument"),
    ],
)
def test_wrong_arguments(capsys: Capture, arguments: list[str], words: str) -> None:
    assert words in wrong(capsys, *arguments)


def test_ctrl_c(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "collect", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_module_and_a_reader_that_leaves() -> None:
    """`python -m minference_ext` is the program; nobody hears of a closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "minference_ext", "patterns", "list"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_is_declared() -> None:
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '\nminference = "minference_ext.cli:main"\n' in text


# ---- info ----------------------------------------------------------------------------------------


def test_info(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    text = run(capsys, "info", "--json", str(path))
    record: dict[str, Any] = json.loads(path.read_text())
    assert json.loads(run(capsys, "info", "--json", "-")) == record
    for value in record["build"].values():
        assert value in text
    for library in ("libminference", "torch_ops"):
        assert Path(record["build"][library]).is_file()
    assert record["cpu"]["model"] in text
    assert f"{torch.get_num_threads()} threads in torch" in text
    kernels = {kernel["name"]: kernel["is_supported"] for kernel in record["cpu_kernels"]}
    assert list(kernels.items()) == minference_ext.cpu_kernels()
    for name, is_supported in kernels.items():
        can = "this machine can run it" if is_supported else "not on this machine"
        assert f"{name}: {can}" in text
    for dtype, choice in record["kernel_for"].items():
        assert choice["kernel"] == minference_ext.cpu_kernel_for(dtype)
        assert f"{dtype}: {choice['kernel']}: {choice['reason']}" in text
    assert record["cuda"]["has_kernels"] == minference_ext.has_cuda()
    assert record["packages"]["transformers"]["version"] in text


def test_info_says_why(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINFERENCE_CPU_KERNEL", raising=False)
    monkeypatch.setattr(info, "cpu_kernel_for", lambda dtype: "amx_bf16")
    text = run(capsys, "info")
    assert "bfloat16: amx_bf16: the best of those this machine can run\n" in text
    assert (
        "float32: amx_bf16: the best of those this machine can run; it speeds up bfloat16 only, so "
        "float32 runs avx512 code\n" in text
    )
    monkeypatch.undo()

    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "portable")
    assert "float32: portable: forced by MINFERENCE_CPU_KERNEL=portable\n" in run(capsys, "info")
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "abacus")
    record = json.loads(run(capsys, "info", "--json", "-"))
    assert record["kernel_for"]["float32"]["kernel"] is None
    assert "abacus" in record["kernel_for"]["float32"]["reason"]


@pytest.mark.parametrize(
    ("architectures", "capability", "meaning"),
    [
        ("80;90a", (9, 0), "a GPU: all ops run on it, in bfloat16, float16 and float8_e4m3fn"),
        ("80", (9, 0), "a GPU: all ops run on it, in bfloat16 and float16"),
        (
            "80-real;90a-real",
            (9, 0),
            "a GPU: all ops run on it, in bfloat16, float16 and float8_e4m3fn",
        ),
        ("80;90a", (8, 0), "a GPU: all ops run on it, in bfloat16 and float16"),
        ("80;90a", (7, 5), "a GPU: older than sm_80: tensors on it are refused"),
        ("80;90a", None, "no device: nothing to run them on"),
        ("", (9, 0), "a GPU: tensors on a GPU are refused; build with nvcc for them"),
    ],
)
def test_info_says_what_a_gpu_runs(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    architectures: str,
    capability: tuple[int, int] | None,
    meaning: str,
) -> None:
    monkeypatch.setattr(info, "has_cuda", lambda: architectures != "")
    monkeypatch.setattr(info, "cuda_architectures", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert f"torch sees {meaning}\n" in run(capsys, "info")


def test_info_without_optional_packages(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(info, "package_version", missing)
    text = run(capsys, "info")
    assert "not found: no attn_implementation and no demo: pip install 'transformers>=4.57'" in text
    assert "not found: no pictures: pip install matplotlib" in text


# ---- patterns ------------------------------------------------------------------------------------


def test_patterns_show(
    capsys: Capture, patterns_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    monkeypatch.setenv("COLUMNS", "80")
    path, picture = tmp_path / "show.json", tmp_path / "show.png"
    text = run(
        capsys, "patterns", "show", str(patterns_file), "--json", str(path), "--plot", str(picture)
    )
    assert text.splitlines() == [
        "somebody/some-model: 3 layers x 4 query heads = 12",
        "",
        "   pattern                    heads  share",
        "A  vertical_slash(1000,6096)      9  75.0%",
        "B  a_shape(100,800)               2  16.7%",
        "C  dense                          1   8.3%",
        "",
        "layer  0",
        "    0  AAAA",
        "    1  ABAB",
        "    2  CAAA",
        "",
        f"Picture: {picture}",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert (record["num_layers"], record["num_heads"]) == (3, 4)
    assert record["counts"] == [
        {"pattern": "vertical_slash(1000,6096)", "heads": 9},
        {"pattern": "a_shape(100,800)", "heads": 2},
        {"pattern": "dense", "heads": 1},
    ]
    assert record["layers"][2] == ["dense", *["vertical_slash(1000,6096)"] * 3]
    assert json.loads(run(capsys, "patterns", "show", str(patterns_file), "--json", "-")) == record


def test_plot_without_matplotlib(
    capsys: Capture, patterns_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minference_ext.command_line.is_available", lambda: False)
    picture = str(tmp_path / "show.png")
    text = wrong(capsys, "patterns", "show", str(patterns_file), "--plot", picture)
    assert "--plot: pictures need matplotlib: pip install" in text


def test_patterns_show_in_a_narrow_terminal(
    capsys: Capture, patterns_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    text = run(capsys, "patterns", "show", str(patterns_file))
    assert text.endswith("The map needs 11 columns, the terminal has 10: --plot draws it.\n")


def test_more_patterns_than_symbols(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "many.json"
    layer = [HeadPattern.vertical_slash(size, 100) for size in range(70)]
    ModelPatterns([layer]).save(path)
    lines = run(capsys, "patterns", "show", str(path), "--plot", str(tmp_path / "x.png"))
    assert lines.count("vertical_slash(") == 70
    assert "89........" in lines


def test_published_patterns(capsys: Capture) -> None:
    if not CONFIGS.is_dir():
        pytest.skip(f"the published files are not in {CONFIGS}")
    for name in published_files():
        text = run(capsys, "patterns", "show", name, "--folder", str(CONFIGS))
        layers, heads = map(int, re.findall(r"(\d+) layers x (\d+) query heads", text)[0])
        counts = [int(count) for count in re.findall(r"\) +(\d+) +\d+\.\d%", text)]
        assert sum(counts) == layers * heads
        if name.startswith("Phi_3_mini"):
            assert counts == [378, 277, 184, 92, 50, 43]
            assert re.search(r"a_shape\(100,800\) +43 +4\.2%", text)


def test_patterns_list(capsys: Capture) -> None:
    text = run(capsys, "patterns", "list")
    record = json.loads(run(capsys, "patterns", "list", "--json", "-"))
    assert record == {name: list(models) for name, models in published_files().items()}
    for name, models in record.items():
        assert name in text
        assert all(model in text for model in models)


def test_patterns_convert(capsys: Capture, tmp_path: Path) -> None:
    ours, theirs, back = (tmp_path / f"{name}.json" for name in ("ours", "theirs", "back"))
    layers = [[HeadPattern.vertical_slash(30, 800), HeadPattern.a_shape(100, 800)]]
    ModelPatterns(layers, [[0.5, 1.0]]).save(ours)
    convert = ("patterns", "convert")
    assert str(theirs) in run(capsys, *convert, str(ours), str(theirs), "--format", "upstream")
    assert json.loads(theirs.read_text()) == [
        {"0": ["vertical_and_slash", 30, 800, 0.5], "1": ["stream_llm", 100, 800, 1.0]}
    ]
    run(capsys, *convert, str(theirs), str(back))
    assert back.read_text() == ours.read_text()


def test_what_fails_has_exit_code_1(capsys: Capture, tmp_path: Path, patterns_file: Path) -> None:
    assert cli.main(["patterns", "show", str(tmp_path / "none.json")]) == 1
    assert "none.json" in sentence(capsys)
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "minference_patterns", "version": 99}')
    assert cli.main(["patterns", "show", str(broken)]) == 1
    assert "version: found 99" in sentence(capsys)
    target = tmp_path / "target.json"
    upstream = ["--format", "upstream"]  # cannot say dense
    assert cli.main(["patterns", "convert", str(patterns_file), str(target), *upstream]) == 1
    assert "layer 2, head 0" in sentence(capsys)
    assert not target.exists()
    assert cli.main(["patterns", "convert", str(patterns_file), str(tmp_path / "no" / "x")]) == 1
    assert "its folder must exist" in sentence(capsys)


def test_pattern_text() -> None:
    text = "dense,a_shape(1024,4096),tri_shape(1,2,3),vertical_slash(30,800),block_sparse(9)"
    patterns = parse_patterns(text)
    assert patterns == [
        HeadPattern.dense(),
        HeadPattern.a_shape(1024, 4096),
        HeadPattern.tri_shape(1, 2, 3),
        HeadPattern.vertical_slash(30, 800),
        HeadPattern.block_sparse(9),
    ]
    assert ",".join(map(pattern_text, patterns)) == text
    assert parse_patterns(" dense() , a_shape( 1 , 2 ) ") == [
        HeadPattern.dense(),
        HeadPattern.a_shape(1, 2),
    ]


# ---- bench ---------------------------------------------------------------------------------------


def test_bench_attention(capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    assert not cli.main(
        [
            *("bench", "attention", "--lengths", "1024,128", "--rounds", "2"),
            *("--patterns", "dense,a_shape(16,64),vertical_slash(30,100)", "--head-dim", "64"),
            *("--heads", "4", "--kv-heads", "2", "--threads", "1", "--dtype", "float32"),
            *("--json", str(path), "--plot", str(picture)),
        ]
    )
    captured = capsys.readouterr()
    assert captured.err == "measured: 128 tokens\nmeasured: 1024 tokens\n"
    lines = captured.out.splitlines()
    assert "threads: 1" in lines[0]
    assert lines[1] == "4 query heads, 2 kv heads, head_dim 64, float32"
    assert picture.read_bytes().startswith(b"\x89PNG")

    record = json.loads(path.read_text())
    assert record["machine"]["threads"] == 1
    assert record["shape"] == {"num_heads_q": 4, "num_heads_kv": 2, "head_dim": 64}
    methods = ["SDPA", "dense", "a_shape(16,64)", "vertical_slash(30,100)"]
    assert [(row["length"], row["method"]) for row in record["rows"]] == [
        (length, method) for length in (128, 1024) for method in methods
    ]
    for row, line in zip(record["rows"], lines[4:], strict=False):
        cells = line.split()
        assert cells[:2] == [str(row["length"]), row["method"]]
        assert float(cells[2]) == pytest.approx(row["median_seconds"] * 1e3, rel=0.01)
        assert cells[3] == f"{row['speedup']:.2f}x"
        assert cells[4] == f"{row['attended_share']:.1%}"
        assert len(row["seconds"]) == 2
    by_name = {row["method"]: row for row in record["rows"] if row["length"] == 1024}
    assert by_name["SDPA"]["dense_heads"] is None
    assert by_name["dense"]["dense_heads"] == 4
    # sink 16, window 64, counted by hand.
    pairs = sum(min(i + 1, 64) + min(max(i - 63, 0), 16) for i in range(1024))
    share = pairs / (1024 * 1025 / 2)
    assert by_name["a_shape(16,64)"]["attended_share"] == pytest.approx(share)
    assert list(record["crossovers"]) == methods[2:]
    for method, point in record["crossovers"].items():
        said = next(line for line in lines if line.startswith(f"{method}: "))
        if point is None:
            assert "not faster" in said
        else:
            assert "at all lengths" in said or f"from {point:.0f} tokens on" in said


def test_bench_to_stdout_is_json_alone(capsys: Capture) -> None:
    out = run(
        capsys,
        *("bench", "attention", "--lengths", "64", "--rounds", "1", "--heads", "1"),
        *("--kv-heads", "1", "--head-dim", "16", "--patterns", "dense", "--json", "-"),
    )
    assert [row["method"] for row in json.loads(out)["rows"]] == ["SDPA", "dense"]


def test_demo_is_a_command(capsys: Capture) -> None:
    out = run(
        capsys, *["demo", "--length", "300", "--method", "per_head", "--no-plots", "--json", "-"]
    )
    record = json.loads(out)
    assert [result["method"] for result in record["results"]] == ["dense", "per_head"]
    assert "pictures" not in record


def test_bench_with_a_kernel_this_machine_lacks_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINFERENCE_CPU_KERNEL", "abacus")
    assert cli.main(["bench", "attention", "--lengths", "128", "--rounds", "1"]) == 1
    captured = capsys.readouterr()
    assert "abacus" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
