"""Who may include whom: the table of engine/README.md, checked on every #include and import.

Also the size of files: one that outgrows a sitting has a second idea in it.
"""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 600
MAX_BYTES = 1 << 20

# Headers of C and C++ themselves, and those that only the lowest layers may use.
STANDARD = re.compile(
    r"<([a-z_0-9]+|(assert|errno|limits|math|stdbool|stddef|stdint|stdio|stdlib|string)\.h)>"
)
MACHINE = re.compile(
    r"<(unistd|fcntl|sched|pthread|errno|cpuid|\w+intrin|malloc|sys/\w+|linux/\w+)\.h>"
)
JSON = re.compile(r"<nlohmann/json(_fwd)?\.hpp>")
NANOBIND = re.compile(r"<nanobind/[\w/]+\.h>")
DEVICE = re.compile(r"<((cuda\w*|cooperative_groups|mma)(/\w+)?(\.h)?|dlfcn\.h)>")
CLI = re.compile(r"<(CLI/\w+\.hpp|benchmark/benchmark\.h)>")

PUBLIC = ["stepladder/*.h"]
CORE = ["core/*.h", *PUBLIC]
IO = ["io/*.h", *CORE]
INTERFACE = [f"backends/{part}.h" for part in ("tables", "operators", "backend")]
BACKEND = [*INTERFACE, "backends/memory.h", *CORE]
MODEL = ["model/*.h", "formats/linear.h", *IO, *BACKEND]
SPEC = ["spec/*.h", *BACKEND]

# First match wins: files, the quoted headers they may include, and the angled ones.
LAYERS = [
    ("engine/include/stepladder/*", PUBLIC, [STANDARD]),
    ("engine/core/*", ["core/*.h", "stepladder/error.h"], [STANDARD, MACHINE]),
    ("engine/io/*", IO, [STANDARD, MACHINE, JSON]),
    ("engine/backends/tables.h", ["core/*.h"], [STANDARD]),
    ("engine/backends/operators.h", ["backends/tables.h", "core/*.h"], [STANDARD]),
    ("engine/backends/backend.h", ["backends/operators.h"], [STANDARD]),
    ("engine/backends/composed.h", ["backends/operators.h"], [STANDARD]),
    ("engine/backends/follow.h", ["backends/operators.h"], [STANDARD]),
    ("engine/backends/growth.h", ["backends/operators.h"], [STANDARD]),
    ("engine/backends/backend.cpp", ["backends/backend.h", "generated/*.h", *CORE], [STANDARD]),
    ("engine/backends/cpu/*", ["backends/*.h", "generated/*.h", *CORE], [STANDARD, MACHINE]),
    (
        "engine/backends/*",
        ["backends/*.h", "backends/*.cuh", "generated/*.h", *CORE],
        [STANDARD, MACHINE, DEVICE],
    ),
    ("engine/formats/*/cpu.cpp", ["formats/*.h", "backends/*.h", *IO], [STANDARD, MACHINE]),
    ("engine/formats/cpu/*", ["formats/*.h", "backends/*.h", *IO], [STANDARD, MACHINE]),
    ("engine/formats/cuda/*.h", ["formats/*.h", "backends/*.h", *IO], [STANDARD, DEVICE]),
    ("engine/formats/cuda/*.cpp", ["formats/*.h", "backends/*.h", *IO], [STANDARD, DEVICE]),
    (
        "engine/formats/*.cu*",
        ["formats/*.h", "formats/*.cuh", "backends/*.h", "backends/*.cuh", *IO],
        [STANDARD, DEVICE],
    ),
    ("engine/formats/*", ["formats/*.h", "generated/*.h", *IO, *BACKEND], [STANDARD, JSON]),
    ("engine/model/*", MODEL, [STANDARD, JSON]),
    ("engine/spec/model_verifier.*", ["spec/*.h", *MODEL], [STANDARD]),
    ("engine/spec/drafters/*", ["spec/*.h", *MODEL], [STANDARD]),
    ("engine/spec/drafters.cpp", ["generated/drafters.h", *SPEC], [STANDARD]),
    ("engine/spec/*", SPEC, [STANDARD]),
    ("engine/api/*", ["api/*.h", "spec/*.h", *MODEL], [STANDARD, MACHINE, JSON]),
    ("bindings/*", ["*.h", "formats/linear.h", *PUBLIC], [STANDARD, MACHINE, NANOBIND]),
    (
        "bench/kernels*",
        ["bench/*.h", "formats/*.h", "backends/*.h", *IO],
        [STANDARD, MACHINE, JSON, CLI],
    ),
    (
        "bench/device_*",
        ["bench/*.h", "formats/*.h", "backends/*.h", "backends/*.cuh", *IO],
        [STANDARD, MACHINE, DEVICE, JSON],
    ),
    ("bench/*", ["bench/*.h", "*.h", *PUBLIC], [STANDARD, MACHINE, JSON, CLI]),
]

# Python: what each file may import beside the standard library, numpy, the package itself and, where
# only type checkers look, typing_extensions.
EVERYWHERE = {"stepladder", "numpy", "typing_extensions"}
IMPORTS = [
    ("python/stepladder/base/*", {"rich"}),
    ("python/stepladder/text/*", {"tokenizers", "sentencepiece", "jinja2"}),
    ("python/stepladder/files/*", {"gguf"}),
    ("bench/train_eagle.py", {"torch", "tokenizers", "safetensors"}),
    ("bench/torch_llama.py", {"torch", "safetensors", "gguf"}),
    ("bench/*", {"gguf", "datasets"}),
]
# The rooms of the package and those that each may import from; `_core` is the engine. The package
# itself gathers the public names of all but the command, which only `python -m` starts.
ROOMS = {
    "base": set(),
    "text": {"base"},
    "files": {"_core", "base", "text"},
    "model": {"_core", "base", "text", "files"},
    "cli": {"_core", "base", "files", "model"},
    "__init__": {"_core", "base", "files", "model"},
    "__main__": {"cli"},
}
# Text is Python's business and numbers are the engine's: a framework would blur the line. Only what
# trains heads, and names it above, has one.
NEVER = {"torch", "transformers", "tensorflow", "jax"}


def repository_files():
    """Every file of the repository, as git would commit it now; all but the made ones without git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / line for line in listed.stdout.splitlines()]
    else:
        made = {"build", "dist", "models", ".git", "__pycache__", ".venv"}
        paths = [p for p in ROOT.rglob("*") if not made & set(p.relative_to(ROOT).parts)]
    return sorted(p for p in paths if p.is_file())


def name_of(path):
    return path.relative_to(ROOT).as_posix()


FILES = repository_files()
SOURCES = [
    p
    for p in FILES
    if p.suffix in {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}
    and name_of(p).startswith(("engine/", "bindings/", "bench/"))
]
SCRIPTS = [p for p in FILES if p.suffix == ".py" and name_of(p).startswith(("python/", "bench/"))]


def matches(include, patterns):
    """A pattern without a slash names a header beside the file; any other, a path under engine/."""
    return any(
        fnmatch(include, p) if "/" in p else "/" not in include and fnmatch(include, p)
        for p in patterns
    )


def bad_includes(name, text):
    """The include lines of the file `name` that its layer does not allow."""
    for pattern, quoted, angled in LAYERS:
        if fnmatch(name, pattern):
            break
    else:
        return [f"{name} belongs to no layer: give it a row in LAYERS"]
    bad = []
    for line in re.findall(r'^[ \t]*#[ \t]*include[ \t]*([<"][^>"]+[>"])', text, re.MULTILINE):
        if line[0] == "<":
            public = line.startswith("<stepladder/")
            allowed = public or any(p.fullmatch(line) for p in angled)
        else:
            allowed = matches(line[1:-1], quoted)
        if not allowed:
            bad.append(f"{name} includes {line}")
    return bad


def imported(text):
    """The top-level names of absolute imports, wherever in the file they stand."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def bad_imports(name, text):
    """The imports of the Python file `name` that it may not have."""
    siblings = {p.stem for p in (ROOT / name).parent.glob("*.py")}
    allowed = next((extra for pattern, extra in IMPORTS if fnmatch(name, pattern)), set())
    known = (
        sys.stdlib_module_names
        | EVERYWHERE
        | allowed
        | (siblings if name.startswith("bench/") else set())
    )
    return [f"{name} imports {i}" for i in imported(text) if i in NEVER - allowed or i not in known]


def package_imports(name, text):
    """The modules of the package that its file `name` imports, wherever in the file: "text.template"."""
    inside = name.removeprefix("python/stepladder/").split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found = [
                a.name.split(".")[1:] for a in node.names if a.name.split(".")[0] == "stepladder"
            ]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) + 1 - node.level]
            found = [base + (node.module or "").split(".")] if node.module else [[*base, a.name] for a in node.names]  # fmt: skip
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "stepladder":
            found = [node.module.split(".")[1:]]
        else:
            continue
        yield from (".".join(parts) or "__init__" for parts in found)


def module_of(name):
    return (
        name.removeprefix("python/stepladder/")
        .removesuffix(".py")
        .removesuffix("/__init__")
        .replace("/", ".")
    )


def bad_rooms(name, text):
    """The imports of the package's file `name` that lead to a room it may not enter."""
    room = module_of(name).split(".")[0]
    if room not in ROOMS:
        return [f"{name} belongs to no room: give it a row in ROOMS"]
    entered = ((i, i.split(".")[0]) for i in package_imports(name, text))
    return [f"{name} imports {i}" for i, to in entered if to not in ROOMS[room] | {room}]


def circles(imports):
    """Modules that stand in a circle of `imports`, module -> modules, or lead into one."""
    left = {m: {i for i in to if i in imports} for m, to in imports.items()}
    while free := [m for m, to in left.items() if not to & left.keys()]:
        for module in free:
            del left[module]
    return sorted(left)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_includes_follow_the_layers(path):
    assert bad_includes(name_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_imports_follow_the_layers(path):
    assert bad_imports(name_of(path), path.read_text()) == []


PACKAGE = [p for p in SCRIPTS if name_of(p).startswith("python/")]


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_rooms_import_one_way(path):
    assert bad_rooms(name_of(path), path.read_text()) == []


def test_rooms_have_an_order_and_modules_no_circles():
    assert circles(ROOMS) == []
    modules = {
        module_of(name_of(p)): set(package_imports(name_of(p), p.read_text())) for p in PACKAGE
    }
    assert circles(modules) == []
    assert len(modules["model.model"] & modules.keys()) > 5  # the names do meet
    assert {m.split(".")[0] for m in modules} == ROOMS.keys()


@pytest.mark.parametrize(
    "name, line",
    [
        ("base/errors.py", "from ..text.template import ChatTemplate"),
        ("base/errors.py", "from .. import _core"),
        ("text/template.py", "def f():\n    from ..model.stream import Stream"),
        ("text/template.py", "from .. import _core"),
        ("text/template.py", "import stepladder"),
        ("files/hub.py", "import stepladder.model.chat as g"),
        ("model/model.py", "if TYPE_CHECKING:\n    from ..cli import main"),
        ("model/model.py", "from stepladder.cli import main"),
        ("cli/bench.py", "from .. import Model"),
        ("__init__.py", "from .cli import main"),
        ("new_room/file.py", ""),
    ],
)
def test_a_way_into_a_wrong_room_is_found(name, line):
    assert (
        len(bad_rooms(f"python/stepladder/{name}", f"from __future__ import annotations\n{line}"))
        == 1
    )


def test_a_circle_is_found():
    assert circles({"a": {"b", "x"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": set()}) == [
        "a",
        "b",
        "c",
        "d",
    ]


def test_every_layer_has_files():
    """A table that matches nothing checks nothing."""
    for layer in ("core", "io", "backends", "formats", "model", "spec", "api"):
        assert any(name_of(p).startswith(f"engine/{layer}/") for p in SOURCES), layer


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.suffix in {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh", ".py", ".cmake"}],
    ids=name_of,
)
def test_files_fit_a_sitting(path):
    lines = path.read_text().count("\n")
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines: it has a second idea in it"


def test_no_large_files():
    assert [name_of(p) for p in FILES if p.stat().st_size > MAX_BYTES] == []


@pytest.mark.parametrize(
    "name, line",
    [
        ("engine/core/arena.h", '#include "io/checkpoint.h"'),
        ("engine/core/arena.h", '#include "stepladder/engine.h"'),
        ("engine/core/dtype.h", "#include <nlohmann/json.hpp>"),
        ("engine/include/stepladder/engine.h", '#include "core/tensor.h"'),
        ("engine/include/stepladder/engine.h", "#include <nlohmann/json.hpp>"),
        ("engine/include/stepladder/engine.h", "#include <unistd.h>"),
        ("engine/io/json.cpp", '#include "backends/backend.h"'),
        ("engine/backends/backend.h", '#include "backends/cpu/kernels.h"'),
        ("engine/backends/cpu/backend.cpp", '#include "formats/linear.h"'),
        ("engine/formats/linear.h", '#include "backends/cpu/kernels.h"'),
        ("engine/formats/w4a16/format.cpp", '#include "backends/cpu/kernels.h"'),
        ("engine/formats/w4a16/cpu.cpp", '#include "model/config.h"'),
        ("engine/model/transformer.cpp", '#include "formats/kernel.h"'),
        ("engine/model/transformer.cpp", '#include "spec/level.h"'),
        ("engine/spec/level.cpp", '#include "model/config.h"'),
        ("engine/spec/draft_tree.h", '#  include "formats/linear.h"'),
        ("engine/spec/drafters/lookup.cpp", '#include "api/engine.h"'),
        ("engine/spec/drafter_kind.h", '#include "model/config.h"'),
        ("engine/api/engine.cpp", '#include "backends/cpu/memory.h"'),
        ("engine/backends/backend.cpp", '#include "backends/cpu/cpu_backend.h"'),
        ("engine/backends/cpu/isa.cpp", "#include <cuda_runtime.h>"),
        ("engine/formats/w4a16/format.cpp", "#include <cuda_fp16.h>"),
        ("engine/formats/w4a16/cuda.cu", '#include "model/config.h"'),
        ("engine/spec/model_verifier.cpp", '#include "backends/cpu/kernels.h"'),
        ("bindings/module.cpp", '#include "spec/level.h"'),
        ("bindings/module.cpp", '#include "core/error.h"'),
        ("bench/main.cpp", '#include "formats/linear.h"'),
        ("engine/new_layer/file.h", ""),
    ],
)
def test_a_wrong_include_is_caught(name, line):
    assert len(bad_includes(name, f"#pragma once\n#include <vector>\n{line}\n")) == 1


@pytest.mark.parametrize(
    "name, line",
    [
        ("engine/spec/level.cpp", '#include "spec/planner.h"'),
        ("engine/formats/w4a16/cpu.cpp", '#include "backends/cpu/kernels.h"'),
        ("engine/formats/w4a16/cuda.cu", '#include "backends/cuda/kernels.h"'),
        ("engine/formats/w4a16/cuda.cu", "#include <cuda_fp16.h>"),
        ("engine/backends/cuda/cuda_backend.cpp", "#include <cuda_runtime.h>"),
        ("engine/core/file.cpp", "#include <sys/mman.h>"),
        ("engine/model/config.cpp", "#include <nlohmann/json.hpp>"),
        ("bench/main.cpp", '#include "stepladder/engine.h"'),
    ],
)
def test_a_right_include_is_not(name, line):
    assert bad_includes(name, line) == []


@pytest.mark.parametrize(
    "name, line",
    [
        ("python/stepladder/text/template.py", "import torch"),
        ("python/stepladder/model/levels.py", "import tokenizers"),
        ("python/stepladder/model/levels.py", "import safetensors"),
        (
            "python/stepladder/cli/command.py",
            "def f():\n    from gguf.gguf_reader import GGUFReader",
        ),
        ("python/stepladder/cli/command.py", "import requests.adapters as a"),
        ("bench/demo.py", "from transformers import AutoModel"),
    ],
)
def test_a_wrong_import_is_caught(name, line):
    assert len(bad_imports(name, line)) == 1


def test_a_right_import_is_not():
    assert (
        bad_imports(
            "python/stepladder/text/template.py",
            "import os.path\nfrom . import _core\nimport jinja2",
        )
        == []
    )
