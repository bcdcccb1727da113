"""libminference.so as an engine gets it: exports, dependencies, headers of C and C++, and a C++
client of it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "tests" / "cpp" / "client"
HEADERS = ROOT / "cpp" / "include" / "minference"


def package_folder() -> Path:
    """The installed package, found without importing it (and so without torch)."""
    spec = importlib.util.find_spec("minference_ext")
    assert spec is not None, "minference_ext is not installed: run make build"
    assert spec.origin is not None
    return Path(spec.origin).parent


PACKAGE = package_folder()
CORE = PACKAGE / "lib" / "libminference.so.0"
TORCH_OPS = PACKAGE / "lib" / "libminference_torch.so"


def run(*command: str | Path) -> str:
    """What the command prints; fails with that text if the command fails."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def dynamic_section(library: Path, tag: str) -> list[str]:
    """Values of one tag ("NEEDED", "SONAME", "R(?:UN)?PATH") in a library's dynamic section."""
    return re.findall(rf"\({tag}\).*\[(.*)\]", run("readelf", "-dW", library))


def declared_functions(text: str) -> list[str]:
    """Names of the functions that a header's text declares MINFERENCE_API."""
    text = re.sub(r"//.*", "", text)
    text = re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE)
    return re.findall(r"\bMINFERENCE_API\b[^;{(]*?\b(\w+)\s*\(", text)


def declared_structs(text: str) -> dict[str, list[str]]:
    """Members of every struct that a header's text declares, in order."""
    text = re.sub(r"//.*", "", text)
    structs = {}
    for name, body in re.findall(r"\bstruct (\w+) \{(.*?)\n\s*\}", text, re.DOTALL):
        body = re.sub(r"\(\*(\w+)\)\([^;]*\)", r" \1", body)
        structs[name] = re.findall(r"(\w+)(?:\[\d+\])?(?: = [^;]*)?;", body)
    return structs


def exported_names(nm_output: str) -> list[str]:
    """Demangled names without arguments and version, from `nm -DC --defined-only`."""
    names = []
    for line in nm_output.splitlines():
        _, kind, name = line.split(maxsplit=2)
        if kind != "A":  # the version node itself
            names.append(re.sub(r"@.*", "", name).split("(")[0])
    return names


def test_declared_functions_sees_every_form() -> None:
    text = """
    #define MINFERENCE_API __attribute__((visibility("default")))
    MINFERENCE_API const char* a();  // MINFERENCE_API void not_me();
    MINFERENCE_API Status b(const Args& args,
                            std::size_t* bytes);
    MINFERENCE_API Status
        c(int x);
    Status hidden();
    """
    assert declared_functions(text) == ["a", "b", "c"]


def test_exports_are_the_declared_functions() -> None:
    declared = [
        name if header.name == "c_api.h" else f"minference::{name}"
        for header in sorted(HEADERS.glob("*.h"))
        for name in declared_functions(header.read_text(encoding="utf-8"))
    ]
    exported = exported_names(run("nm", "-DC", "--defined-only", CORE))
    assert sorted(exported) == sorted(declared)


def test_declared_structs_sees_every_form() -> None:
    text = """
    struct Params {
      std::uint32_t struct_size = sizeof(Params);
      const float* data = nullptr;  ///< [heads]; may be null
      IndexView
          list;  // not_me;
      std::int64_t shape[4] = {0, 0, 0, 0};
      char name[32] = "";
      void (*run)(void* context, void (*body)(void*, std::int64_t),
                  void* argument) = nullptr;
    };
    """
    assert declared_structs(text) == {
        "Params": ["struct_size", "data", "list", "shape", "name", "run"]
    }


def test_c_structs_have_the_members_of_cpp() -> None:
    """c_api.cpp compares sizes and offsets; a member that fits into padding shows only here."""
    cpp: dict[str, list[str]] = {}
    for header in HEADERS.glob("*.h"):
        if header.name != "c_api.h":
            cpp |= declared_structs(header.read_text(encoding="utf-8"))
    c = declared_structs((HEADERS / "c_api.h").read_text(encoding="utf-8"))
    assert c
    assert c == {name: cpp[name.removeprefix("Minference")] for name in c}


def test_core_library_names_and_needs() -> None:
    assert dynamic_section(CORE, "SONAME") == ["libminference.so.0"]
    assert dynamic_section(CORE, "R(?:UN)?PATH") == []
    allowed = re.compile(r"(lib(c|m|gcc_s|stdc\+\+|gomp|pthread|dl)|ld-linux-.*)\.so\.\d+$")
    assert [name for name in dynamic_section(CORE, "NEEDED") if not allowed.match(name)] == []


def test_torch_library_needs_and_path() -> None:
    needed = dynamic_section(TORCH_OPS, "NEEDED")
    assert "libminference.so.0" in needed
    assert not [name for name in needed if "python" in name or "cuda" in name]
    assert dynamic_section(TORCH_OPS, "R(?:UN)?PATH") == ["$ORIGIN"]


def test_python_module_needs_and_path() -> None:
    module = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    needed = dynamic_section(module, "NEEDED")
    assert "libminference.so.0" in needed
    assert not [name for name in needed if "torch" in name]
    assert dynamic_section(module, "R(?:UN)?PATH") == ["$ORIGIN/lib"]


def test_installed_headers_are_the_sources() -> None:
    installed = {path.name: path.read_bytes() for path in (PACKAGE / "include").rglob("*.h")}
    assert installed == {path.name: path.read_bytes() for path in HEADERS.glob("*.h")}


@pytest.mark.parametrize("header", sorted(path.name for path in HEADERS.glob("*.h")))
def test_header_compiles_alone_as_cpp17(header: str, tmp_path: Path) -> None:
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "minference/{header}"\n', encoding="utf-8")
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run("c++", *flags, "-I", PACKAGE / "include", source)


def test_c_header_compiles_alone_as_c99(tmp_path: Path) -> None:
    source = tmp_path / "alone.c"
    source.write_text('#include "minference/c_api.h"\n', encoding="utf-8")
    flags = ["-std=c99", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run("cc", *flags, "-I", PACKAGE / "include", source)


def test_engine_client_finds_links_and_computes(tmp_path: Path) -> None:
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    assert cmake is not None, "cmake not found"
    run(cmake, "-S", CLIENT, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={PACKAGE}")
    run(cmake, "--build", tmp_path)
    program = tmp_path / "engine_client"
    ours = [name for name in dynamic_section(program, "NEEDED") if "minference" in name]
    assert ours == ["libminference.so.0"]
    loaded = run("ldd", program)
    assert str(CORE) in loaded
    assert "torch" not in loaded.replace(str(PACKAGE), "")
    assert "python" not in loaded.replace(str(PACKAGE), "")
    print(run(program))
