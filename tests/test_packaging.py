"""The wheel and the sdist as users get them: what they hold, which tools accept them, and C and C++
programs built against the installed wheel, away from this tree."""

from __future__ import annotations

import re
import shlex
import shutil
import site
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from setuptools import build_meta

import build_backend
from tests.installed_wheel import ROOT, WheelEnvironment, build_sdist, only, run

CLIENT = ROOT / "tests" / "cpp" / "client"
PACKAGE = ROOT / "python" / "minference_ext"
BUILT = re.compile(r"(include|lib)/|.*__pycache__/|.*\.so$")


def project_version() -> str:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    match = re.search(r"^project\(minference VERSION ([\d.]+)", text, re.MULTILINE)
    assert match is not None
    return match.group(1)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        assert len(names) == len(set(names)), "the wheel holds a file twice"
        return {name: archive.read(name) for name in names}


def expected_names() -> set[str]:
    """Every file of the Python package and every public header, what CMake builds, metadata."""
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()]
    package = [name for name in files if not BUILT.match(name)]
    package += [
        path.relative_to(ROOT / "cpp").as_posix() for path in (ROOT / "cpp/include").rglob("*.h")
    ]
    package += [
        f"_C{sysconfig.get_config_var('EXT_SUFFIX')}",
        "lib/cmake/minference/minferenceConfig-release.cmake",
        "lib/cmake/minference/minferenceConfig.cmake",
        "lib/cmake/minference/minferenceConfigVersion.cmake",
        "lib/libminference.so.0",
        "lib/libminference_torch.so",
        "lib/pkgconfig/minference.pc",
    ]
    info = ["METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"]
    return {
        *(f"minference_ext/{name}" for name in package),
        *(f"minference_ext-{project_version()}.dist-info/{name}" for name in info),
    }


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = contents(wheel)
    assert set(files) == expected_names()
    info = f"minference_ext-{project_version()}.dist-info"
    metadata = files[f"{info}/METADATA"].decode()
    assert f"\nVersion: {project_version()}\n" in metadata
    assert re.findall(r"^Requires-Dist: ([^;\n]*)$", metadata, re.MULTILINE) == ["torch>=2.11"]
    assert "Root-Is-Purelib: false" in files[f"{info}/WHEEL"].decode()
    texts = [name for name in files if name.endswith((".cmake", ".pc", ".py"))]
    assert [name for name in texts if str(ROOT).encode() in files[name]] == []


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdist(tmp_path_factory.mktemp("sdist"))


def test_sdist_holds_what_git_does(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this tree is no git checkout: nothing says what an sdist has to hold")
    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    made = {name for name in names if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    assert names - made == {name for name in listed.splitlines() if (ROOT / name).exists()}


@pytest.mark.slow
def test_isolated_build_of_the_sdist_equals_the_wheel(
    sdist: Path, wheel: Path, wheel_environment: WheelEnvironment, tmp_path: Path
) -> None:
    """Compiles everything but CUDA, and finds the torch that build isolation hides."""
    pip = ("env", "CMAKE_ARGS=-DMINFERENCE_CUDA=OFF", wheel_environment.python, "-m", "pip")
    told = run(*pip, "wheel", "-v", "--no-deps", "-w", tmp_path, sdist, cwd=tmp_path)
    assert f": {wheel_environment.prefix.parent / 'torch'}\n" in told
    ours, theirs = contents(wheel), contents(only(tmp_path, "*.whl"))
    assert set(theirs) == set(ours)
    compiled = re.compile(r".*\.so(\.0)?$|.*/RECORD$")
    assert [name for name in ours if ours[name] != theirs[name] and not compiled.match(name)] == []


def test_backend_asks_for_torch_only_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_meta, "get_requires_for_build_wheel", lambda _: ["x"])
    assert build_backend.get_requires_for_build_wheel() == ["x"]
    every_path = list(sys.path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(site, "getsitepackages", lambda: every_path)
    assert build_backend.get_requires_for_build_wheel() == ["x"]
    monkeypatch.setattr(site, "getsitepackages", list)
    assert build_backend.get_requires_for_build_wheel() == ["x", "torch>=2.11"]
    assert build_backend.get_requires_for_build_editable() == ["x", "torch>=2.11"]


def test_auditwheel_grafts_nothing(wheel: Path, tmp_path: Path) -> None:
    """With the options that CONTRIBUTING.md gives for a release."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    options = re.findall(r"--exclude (\S+)", text)
    assert options, "CONTRIBUTING.md has no auditwheel repair --exclude"
    excluded = [word for name in options for word in ("--exclude", name)]
    run("auditwheel", "repair", *excluded, "-w", tmp_path, wheel, cwd=tmp_path)
    repaired = only(tmp_path, "*.whl")
    assert "-manylinux_" in repaired.name
    assert set(contents(repaired)) == set(contents(wheel))


def test_installed_wheel_computes(wheel_environment: WheelEnvironment, tmp_path: Path) -> None:
    program = """
import torch, minference_ext as mx
q, k, v = (torch.randn(1, heads, 300, 64) for heads in (4, 2, 2))
out, lse = mx.vs_attention(q, k, v, 300, 300)
sdpa = torch.nn.functional.scaled_dot_product_attention
expected = sdpa(q, k, v, is_causal=True, enable_gqa=True)
torch.testing.assert_close(out, expected)
print(mx.cmake_dir(), mx.include_dir(), mx.lib_dir(), sep="\\n")
"""
    told = run(wheel_environment.python, "-c", program, cwd=tmp_path)
    prefix = wheel_environment.prefix
    folders = [prefix / "lib/cmake/minference", prefix / "include", prefix / "lib"]
    assert told.splitlines()[-3:] == [str(folder) for folder in folders]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize(
    ("source", "language"), [("engine_client.cpp", "CXX"), ("c_client.c", "C")]
)
def test_client_by_cmake(
    source: str, language: str, wheel_environment: WheelEnvironment, tmp_path: Path
) -> None:
    """A project of one language: an engine in C has no C++ compiler."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
cmake_minimum_required(VERSION 3.24)
project(client LANGUAGES {language})
find_package(minference {project_version()} CONFIG REQUIRED)
find_package(Threads REQUIRED)
add_executable(client {CLIENT / source})
target_link_libraries(client PRIVATE minference::minference Threads::Threads)
""")
    folder = wheel_environment.prefix / "lib" / "cmake" / "minference"
    run("cmake", "-S", ".", "-B", "build", f"-Dminference_DIR={folder}", cwd=tmp_path)
    run("cmake", "--build", "build", cwd=tmp_path)
    assert f"libminference {project_version()}" in run("build/client", cwd=tmp_path)


@pytest.mark.parametrize(
    ("source", "compiler"),
    [
        ("engine_client.cpp", ("c++", "-std=c++17", "-pthread")),
        ("c_client.c", ("cc", "-std=c99")),
    ],
)
def test_client_by_pkg_config(
    source: str, compiler: tuple[str, ...], wheel_environment: WheelEnvironment, tmp_path: Path
) -> None:
    pkg_config = shutil.which("pkg-config") or shutil.which("pkgconf")
    if pkg_config is None:
        pytest.skip("neither pkg-config nor pkgconf is installed: minference.pc is not tried")
    # Moved: a .pc file with a prefix of its own would point to where it was installed.
    prefix = tmp_path / "moved"
    shutil.copytree(wheel_environment.prefix, prefix)

    def ask(*options: str) -> list[str]:
        path = f"PKG_CONFIG_PATH={prefix / 'lib' / 'pkgconfig'}"
        return shlex.split(run("env", path, pkg_config, *options, "minference", cwd=tmp_path))

    assert ask("--modversion") == [project_version()]
    [libdir] = ask("--variable=libdir")
    flags = ask("--cflags", "--libs")
    run(*compiler, CLIENT / source, *flags, f"-Wl,-rpath,{libdir}", "-o", "client", cwd=tmp_path)
    assert f"libminference {project_version()}" in run("./client", cwd=tmp_path)
