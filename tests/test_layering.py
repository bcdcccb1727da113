"""The mechanical rules of the tree: who includes whom, words, names, sizes, options.

Every check is a function from a file's path and text to complaints, so the end of this file can
show that each of them is able to fail. CONTRIBUTING.md says the rules in words.
"""

from __future__ import annotations

import io
import posixpath
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CPP_ENDINGS = (".h", ".c", ".cpp", ".cuh", ".cu")
ENDINGS = (*CPP_ENDINGS, ".py", ".pyi", ".txt", ".toml")
MAX_LINES = 600
MAX_KERNEL_PARAMETERS = 3  # of a kernel's template: every value of one more multiplies the build
MAX_INSTANCES = 30  # files below cuda/*/instances
OPTIONS = {
    "CUTLASS_DIR",
    "MINFERENCE_CUDA",
    "MINFERENCE_PTXSIM",
    "MINFERENCE_PYTHON",
    "MINFERENCE_SANITIZE",
    "MINFERENCE_TESTS",
}
ENVIRONMENT = {"MINFERENCE_CPU_KERNEL"}

Check = Callable[[str, str], list[str]]


def sources() -> list[tuple[str, str]]:
    """Path below the root and text of every source file."""
    files = [ROOT / name for name in ("CMakeLists.txt", "build_backend.py", "setup.py")]
    for folder in ("bench", "cpp", "cuda", "python/minference_ext", "tests"):
        files += sorted((ROOT / folder).rglob("*"))
    found = []
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        is_built = re.match(r"python/minference_ext/(lib|include)/", name) or "__pycache__" in name
        if path.is_file() and path.name.endswith(ENDINGS) and not is_built:
            found.append((name, path.read_text(encoding="utf-8")))
    return found


SOURCES = sources()


def numbered_comments(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line number and words of every comment, markers removed."""
    if path.endswith(CPP_ENDINGS):
        code = re.sub(r'"(\\.|[^"\\\n])*"', lambda m: " " * len(m.group()), text)
        for number, line in enumerate(code.splitlines(), 1):
            if (start := line.find("//")) >= 0:
                yield number, line[start:].lstrip("/!<").strip()
    elif path.endswith((".py", ".pyi")):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("#!: ").strip()


def cpp_code(text: str) -> str:
    """C++ text with comments, string and character literals blanked, lines kept."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'"
    blank = re.sub(r"#include[^\n]*", "", text)
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m.group()), blank, flags=re.DOTALL)


# ---- Who may include whom -----------------------------------------------------------------------

SYSTEM_HEADERS = {  # of the operating system and compiler
    "cpuid.h",
    "dlfcn.h",
    "sys/mman.h",
    "immintrin.h",
    "omp.h",
    "pthread.h",
    "sched.h",
    "sys/syscall.h",
    "unistd.h",
}

# From a folder (longest match wins) to patterns of what it may include: standard headers as "std",
# those above as "system", others as <name>; our own by their path below the root.
INCLUDE_TABLE: dict[str, tuple[str, ...]] = {
    "cpp/include/minference/": (r"<cstddef>", r"<cstdint>", r"cpp/include/minference/.*"),
    "cpp/include/minference/c_api.h": (r"<std(def|int)\.h>",),  # C, alone
    "cpp/plan/": (r"std", r"cpp/include/minference/.*", r"cpp/plan/.*"),
    "cpp/core/": (
        r"std",
        r"cpp/(include/minference|core|plan)/.*",
        r"(cpp/cpu|cuda)/api\.h",
    ),
    "cpp/cpu/": (
        r"std",
        r"system",
        r"cpp/(include/minference|plan)/.*",
        r"cpp/cpu/(?!reference/).*",
        r"cpp/core/status\.h",
    ),
    "cpp/cpu/reference/": (r"std", r"cpp/include/minference/.*", r"cpp/cpu/reference/.*"),
    "cpp/torch/": (
        r"std",
        r"system",
        r"<(torch|pybind11)/.*>",
        r"cpp/include/minference/.*",
        r"cpp/torch/.*",
    ),
    "cuda/": (  # the files of host code, directly in this folder
        r"std",
        r"<(cuda_runtime_api|driver_types|vector_types)\.h>",
        r"cpp/(include/minference|plan)/.*",
        r"cpp/core/status\.h",
        r"cuda/[^/]*",
        r"cuda/(any|sm80|sm90)/launch\.h",
    ),
    "cuda/api.h": (r"<cstddef>", r"cpp/(include/minference|plan)/.*"),
    "cuda/params.h": (r"std", r"<vector_types\.h>", r"cpp/(include/minference|plan)/.*"),
    "cuda/device/": (
        r"std",
        r"<(cuda_\w+|driver_types|vector_types)\.h>|<(cub|cuda|cute|cutlass)/.*>",
        r"cpp/(include/minference|plan)/.*",
        r"cuda/params\.h",
        r"cuda/device/.*",
    ),
    "cuda/any/": (
        r"std",
        r"<(cuda_\w+|driver_types|vector_types)\.h>|<(cub|cuda|cute|cutlass)/.*>",
        r"cpp/(include/minference|plan)/.*",
        r"cuda/params\.h",
        r"cuda/(device|any)/.*",
    ),
    "cuda/sm80/": (
        r"std",
        r"<(cuda_\w+|driver_types|vector_types)\.h>|<(cuda|cute|cutlass)/.*>",
        r"cpp/(include/minference|plan)/.*",
        r"cuda/params\.h",
        r"cuda/(device|sm80)/.*",
    ),
    "cuda/sm90/": (
        r"std",
        r"<(cuda|cuda_\w+|driver_types|vector_types)\.h>|<(cuda|cute|cutlass)/.*>",
        r"cpp/(include/minference|plan)/.*",
        r"cuda/params\.h",
        r"cuda/(device|sm90)/.*",
    ),
    "tests/cpp/": (
        r"std",
        r"system",
        r"cpp/(include/minference|core|cpu|plan)/.*",
        r"tests/cpp/.*",
    ),
    "tests/cpp/cuda/": (
        r"std",
        r"system",
        r"<cuda_runtime_api\.h>",
        r"(cpp/(include/minference|core|cpu|plan)|cuda)/.*",
        r"tests/cpp/.*",
        r"bench/cuda/line_patterns\.h",
    ),
    "bench/cuda/": (
        r"std",
        r"<(cuda_\w+|driver_types|vector_types)\.h>",
        r"(cpp/(include/minference|core|plan)|cuda|bench/cuda)/.*",
    ),
    "tests/torch_cuda/": (r"std", r"<cuda_runtime_api\.h>", r"<(ATen|c10|torch)/.*>"),
    "tests/cpp/client/": (r"std", r"cpp/include/minference/.*"),
    "tests/cpp/client/c_client.c": (
        r"<(std(def|int|io|lib)|string)\.h>",
        r"cpp/include/minference/c_api\.h",
    ),
}


def included_file(path: str, name: str) -> str:
    """Path below the root of the header of ours that a quoted include in `path` names."""
    if name.startswith("minference/"):
        return f"cpp/include/{name}"
    if name.startswith(("core/", "cpu/", "plan/", "torch/")):
        return f"cpp/{name}"
    if name.startswith(("cuda/", "bench/")):
        return name
    if path.startswith("cuda/"):
        return posixpath.normpath(f"cuda/{name}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def check_includes(path: str, text: str) -> list[str]:
    folder = max((key for key in INCLUDE_TABLE if path.startswith(key)), key=len, default=None)
    if folder is None:
        return [f"{path}: C++ outside of the include table"] if path.endswith(CPP_ENDINGS) else []
    complaints = []
    for opening, name in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', text, re.MULTILINE):
        if opening == '"':
            target = included_file(path, name)
            names = {target}
        else:
            target = f"<{name}>"
            names = {target}
            if re.fullmatch(r"[a-z0-9_]+", name):
                names.add("std")
            elif name in SYSTEM_HEADERS:
                names.add("system")
        allowed = INCLUDE_TABLE[folder]
        if not any(re.fullmatch(pattern, name) for pattern in allowed for name in names):
            complaints.append(f"{path}: {folder} may not include {target}")
    return complaints


# ---- Words and text -----------------------------------------------------------------------------

FORBIDDEN_WORDS = (
    r"\b(_?exit|quick_exit|abort|terminate|v?f?printf|puts) *\(|\bthrow\b|\bstd::(cout|cerr|clog)\b"
)
FORBIDDEN_CUDA = (
    r"\bcuda\w*(Synchronize|Malloc|Free|Register)\w*|\bcuda(Memcpy|Memset)(?!\w*Async)\w*"
    r"|<<<|\b__trap\b|\bassert *\("
)


def check_library_words(path: str, text: str) -> list[str]:
    """The library returns a Status: it never exits, prints or throws. Core knows no framework. CUDA
    neither waits nor allocates, and device/launch.cuh launches: on the caller's stream, checked."""
    complaints = []
    if path.startswith(("cpp/core/", "cpp/cpu/", "cpp/plan/", "cuda/")):
        words = f"{FORBIDDEN_WORDS}|{FORBIDDEN_CUDA}" if path[:5] == "cuda/" else FORBIDDEN_WORDS
        for number, line in enumerate(cpp_code(text).splitlines(), 1):
            if match := re.search(words, line):
                complaints.append(f"{path}:{number}: {match.group()}")
    if path.startswith("cpp/core/"):
        for number, line in enumerate(text.splitlines(), 1):
            if match := re.search(r"\b(py)?torch\b|\baten\b|\bc10\b|\bpybind11\b", line, re.I):
                complaints.append(f"{path}:{number}: core names {match.group()}")
    return complaints


def check_kernel_templates(path: str, text: str) -> list[str]:
    complaints = []
    for match in re.finditer(r"\btemplate\s*<([^;{}]*?)>\s*__global__", cpp_code(text)):
        plain = re.sub(r"<[^<>]*>|\([^()]*\)", "", match[1])
        if (count := plain.count(",") + 1) > MAX_KERNEL_PARAMETERS:
            complaints.append(f"{path}: a kernel with {count} template parameters")
    return complaints


def check_length(path: str, text: str) -> list[str]:
    lines = text.splitlines()
    head = " ".join(lines[:20])
    if len(lines) <= MAX_LINES or re.search(rf"over {MAX_LINES} lines\W+because\b", head, re.I):
        return []
    return [
        f"{path}: {len(lines)} lines; say in its head why it is 'over {MAX_LINES} lines: because'"
    ]


def check_name(path: str, text: str) -> list[str]:
    parts = re.split(r"[_.]", posixpath.basename(path))
    forbidden = {"util", "utils", "helper", "helpers", "common", "misc", "tmp", "stuff"}
    return [f"{path}: say what it holds instead of '{p}'" for p in parts if p in forbidden]


CPP_STATEMENT = re.compile(
    r"(?:(?:return|if|for|while|else|switch|case|auto|const|static|using|delete|#\s*\w+)\b.*[;{]"
    r"|[\w:.\->\[\]()*&<> ]+(?:\s[-+*/|&]?=\s|\+\+|--)[^.]*;"
    r"|[\w:.\->]+\(.*\);"
    r"|[{}]+;?)$"
)
PYTHON_STATEMENT = re.compile(
    r"(?:(?:import|from) [\w.]+(?: import .*)?|return\b.*[)\]}]|(?:if|for|while|with|def|class) .*:"
    r"|(?:print|assert_close|self\.\w+|torch\.\w+)\(.*\)|assert .* == .*)$"
)


def check_comments(path: str, text: str) -> list[str]:
    """No commented-out code; an open point names the issue or condition that ends it."""
    statement = CPP_STATEMENT if path.endswith(CPP_ENDINGS) else PYTHON_STATEMENT
    complaints = []
    for number, comment in numbered_comments(path, text):
        if statement.match(comment):
            complaints.append(f"{path}:{number}: commented-out code: {comment}")
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\((#\d+|until [^)]+|when [^)]+)\))", comment):
            complaints.append(f"{path}:{number}: say what ends it, TODO(#12) or TODO(until ...)")
    return complaints


# ---- Options and environment --------------------------------------------------------------------


def check_options(path: str, text: str) -> list[str]:
    """Exactly the options and environment variables that are documented."""
    complaints = []
    if path == "CMakeLists.txt":
        pattern = r"^\s*(?:option\(\s*(\w+)|set\(\s*((?!CMAKE_)\w+) .*\bCACHE\b)"
        declared = {a or b for a, b in re.findall(pattern, text, re.MULTILINE)}
        complaints += [f"{path}: option {name} is not in the list" for name in declared - OPTIONS]
        complaints += [f"{path}: option {name} is gone" for name in OPTIONS - declared]
    elif path.startswith(("cpp/", "cuda/")):
        for read in re.findall(r"\bgetenv\s*\(\s*([^)]*)\)", text):
            constant = re.search(rf'\b{re.escape(read)}(?:\[\])? = ("\w+");', text)
            if (constant.group(1) if constant else read).strip('"') not in ENVIRONMENT:
                complaints.append(f"{path}: reads {read}")
    elif path.startswith("python/minference_ext/"):
        for line in text.splitlines():
            if re.search(r"\bos\.(environ|getenv)\b", line) and not any(
                name in line for name in ENVIRONMENT
            ):
                complaints.append(f"{path}: reads the environment: {line.strip()}")
    return complaints


CHECKS: tuple[Check, ...] = (
    check_includes,
    check_library_words,
    check_kernel_templates,
    check_length,
    check_name,
    check_comments,
    check_options,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_tree(check: Check) -> None:
    complaints = [complaint for path, text in SOURCES for complaint in check(path, text)]
    assert not complaints, "\n".join(complaints)


def test_every_folder_is_read() -> None:
    cpp = (
        "cpp/include/",
        "cpp/core/",
        "cpp/cpu/",
        "cpp/plan/",
        "cpp/torch/",
        "cuda/any/",
        "cuda/sm80/",
        "cuda/sm90/",
    )
    for folder in (*cpp, "python/", "tests/"):
        assert any(path.startswith(folder) for path, _ in SOURCES), folder


def test_instances_are_few() -> None:
    instances = [path for path, _ in SOURCES if re.match(r"cuda/\w+/instances/.*\.cu$", path)]
    assert len(instances) <= MAX_INSTANCES, "cuda/README.md has to say what one more axis gains"


def test_options_are_documented() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for name in sorted(OPTIONS | ENVIRONMENT) if name not in text] == []


# ---- Each check can fail, and leaves good text alone --------------------------------------------

CORE, CPU, HEADER = "cpp/core/a.cpp", "cpp/cpu/a.cpp", "cpp/include/minference/a.h"
KERNEL = "cuda/any/a.cu"
ALL_OPTIONS = "".join(f"option({name})\n" for name in sorted(OPTIONS))

BAD = [
    (check_includes, HEADER, "#include <vector>"),
    (check_includes, HEADER, '#include "core/status.h"'),
    (check_includes, "cpp/include/minference/c_api.h", "#include <cstdint>"),
    (check_includes, "cpp/include/minference/c_api.h", '#include "minference/types.h"'),
    (check_includes, CORE, '#include "cpu/kernels.h"'),
    (check_includes, CORE, '#include "../cpu/kernels.h"'),
    (check_includes, CORE, "#include <immintrin.h>"),
    (check_includes, CORE, "#include <torch/csrc/stable/tensor.h>"),
    (check_includes, CPU, '#include "core/chooser.h"'),
    (check_includes, CPU, '#include "cpu/reference/reference.h"'),
    (check_includes, "cpp/cpu/isa/avx2.cpp", '# include "../../core/chooser.h"'),
    (check_includes, "cpp/torch/a.cpp", '#include "core/status.h"'),
    (check_includes, "cpp/torch/a.cpp", "#include <cuda_runtime.h>"),
    (check_includes, "tests/cpp/a_test.cpp", "#include <torch/csrc/stable/tensor.h>"),
    (check_includes, "tests/cpp/client/a.cpp", '#include "core/status.h"'),
    (check_includes, "cpp/new_folder/a.cpp", ""),
    (check_includes, CORE, '#include "cuda/params.h"'),
    (check_includes, CORE, "#include <cuda_runtime_api.h>"),
    (check_includes, "cpp/plan/a.h", '#include "core/status.h"'),
    (check_includes, "cuda/api.h", "#include <driver_types.h>"),
    (check_includes, "cuda/a.cpp", '#include "any/estimate.cuh"'),
    (check_includes, "cuda/device/a.cuh", '#include "any/launch.h"'),
    (check_includes, "cuda/a.cpp", '#include "sm80/attention_fwd.h"'),
    (check_includes, "cuda/sm80/a.cu", '#include "any/launch.h"'),
    (check_includes, "cuda/sm90/a.cu", '#include "sm80/config.cuh"'),
    (check_includes, "cuda/any/a.cu", '#include "sm80/launch.h"'),
    (check_includes, KERNEL, '#include "core/status.h"'),
    (check_includes, KERNEL, '#include "cpu/select.h"'),
    (check_includes, KERNEL, "#include <torch/library.h>"),
    (check_includes, "tests/cpp/a_test.cpp", '#include "cuda/api.h"'),
    (check_library_words, CPU, "void f() { throw 1; }"),
    (check_library_words, CPU, 'int f() { return printf("x"); }'),
    (check_library_words, CORE, "int f() { std::cerr << 1; }"),
    (check_library_words, CORE, "int f() { std::abort(); }"),
    (check_library_words, CORE, "int f() { fprintf (stderr, s); }"),
    (check_library_words, CORE, "// as PyTorch does\n"),
    (check_library_words, KERNEL, 'printf("x");'),
    (check_library_words, KERNEL, "assert(i < n);"),
    (check_library_words, KERNEL, "sum<<<grid, 128>>>(params);"),
    (check_library_words, "cuda/a.cpp", "cudaStreamSynchronize(stream);"),
    (check_library_words, "cuda/a.cpp", "cudaMallocAsync(&p, n, stream);"),
    (check_library_words, "cuda/a.cpp", "cudaMemcpy(a, b, n, kind);"),
    (
        check_kernel_templates,
        KERNEL,
        "template <class A, int B, bool C, bool D>\n__global__ void f()",
    ),
    (check_length, "tests/a.py", "x = 1\n" * (MAX_LINES + 1)),
    (check_name, "cpp/core/string_utils.h", ""),
    (check_name, "tests/common.py", ""),
    (check_comments, CORE, "int a;\n  // int b = a + 1;\n"),
    (check_comments, CORE, "  // return a;\n"),
    (check_comments, CORE, "  // run(a, b);\n"),
    (check_comments, CORE, "  // }\n"),
    (check_comments, CORE, "// TODO: later\n"),
    (check_comments, "tests/a.py", "# print(x)\n"),
    (check_comments, "tests/a.py", "x = 1  # FIXME\n"),
    (check_comments, "tests/a.py", "# import os\n"),
    (check_options, "CMakeLists.txt", ALL_OPTIONS + "option(MINFERENCE_MORE)\n"),
    (check_options, "CMakeLists.txt", ""),
    (check_options, "CMakeLists.txt", f'{ALL_OPTIONS}set(MORE 1 CACHE STRING "more")\n'),
    (check_options, CPU, 'auto x = std::getenv("OMP_NUM_THREADS");'),
    (check_options, CPU, 'const char kName[] = "HOME"; auto x = std::getenv(kName);'),
    (check_options, CPU, "auto x = std::getenv(name);"),
    (check_options, "python/minference_ext/a.py", 'x = os.environ["HOME"]'),
]
GOOD = [
    (check_includes, HEADER, '#include <cstddef>\n#include "minference/types.h"\n'),
    (check_includes, CORE, '#include <vector>\n#include "core/status.h"\n#include "cpu/api.h"\n'),
    (check_includes, "cpp/cpu/isa/avx2.cpp", '#include <immintrin.h>\n#include "cpu/isa/simd.h"\n'),
    (check_includes, "cpp/torch/a.cpp", '#include <torch/csrc/stable/ops.h>\n#include "view.h"\n'),
    (check_includes, CORE, '#include "cuda/api.h"\n#include "plan/format.h"\n'),
    (check_includes, KERNEL, '#include <cub/cub.cuh>\n#include "params.h"\n'),
    (check_includes, "cuda/a.cpp", '#include "any/launch.h"\n#include "core/status.h"\n'),
    (check_includes, "cuda/sm80/a.cuh", '#include <cute/tensor.hpp>\n#include "device/bits.cuh"\n'),
    (check_includes, "tests/cpp/cuda/a.cpp", '#include "bench/cuda/line_patterns.h"\n'),
    (check_library_words, CPU, '// may throw\nauto s = "abort"; std::snprintf(p, n, "x");\n'),
    (check_library_words, CORE, "void f() __attribute__((format(printf, 1, 2)));"),
    (check_library_words, "tests/cpp/a_test.cpp", 'int f() { printf("x"); }'),
    (check_library_words, KERNEL, "static_assert(true); cudaMemsetAsync(p, 0, n, stream);"),
    (
        check_kernel_templates,
        KERNEL,
        "template <class A, int B>\n__global__ void f(X<A, B, 1, 2> x);",
    ),
    (check_length, "tests/a.py", f"# Over {MAX_LINES} lines: because\n" + "x = 1\n" * MAX_LINES),
    (check_name, "cpp/core/status.h", ""),
    (check_comments, HEADER, "//   out = sum_j softmax_j(scale * q . k[j]) * v[j]\n"),
    (check_comments, CORE, "// keys are read once;\n// TODO(#12): two at a time\n"),
    (check_comments, "tests/a.py", 'text = "# import os"  # o = i - j, for every row\n'),
    (check_options, "CMakeLists.txt", ALL_OPTIONS),
    (check_options, CPU, 'auto x = std::getenv("MINFERENCE_CPU_KERNEL");'),
    (check_options, CPU, 'const char k[] = "MINFERENCE_CPU_KERNEL"; auto x = std::getenv(k);'),
]


@pytest.mark.parametrize(("check", "path", "text"), BAD)
def test_check_complains(check: Check, path: str, text: str) -> None:
    assert check(path, text)


@pytest.mark.parametrize(("check", "path", "text"), GOOD)
def test_check_accepts(check: Check, path: str, text: str) -> None:
    assert check(path, text) == []
