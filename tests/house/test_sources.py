"""Rules that every source file keeps, checked over the whole tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import vitlet

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "python",
    "export",
    "partition",
    "apps",
    "csrc",
    "tests",
    "benchmarks",
    "scripts",
    "docs",
)
# A reason for each file over the ceiling.
LONG_FILES: dict[str, str] = {}


def sources(*suffixes: str) -> Iterator[tuple[str, str]]:
    """(path from the root, text) of every file with one of `suffixes`; links are not followed."""
    tops = [path for path in ROOT.iterdir() if path.is_file()]
    below = [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    for path in sorted(tops + below):
        if path.suffix in suffixes and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix(), path.read_text("utf-8")


def matches(pattern: str, *suffixes: str) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in sources(*suffixes)
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line) and not name.startswith("tests/house/")
    ]


def test_no_file_is_longer_than_400_lines_without_a_reason() -> None:
    lengths = {n: t.count("\n") for n, t in sources(".py", ".pyi", ".cpp", ".h", ".cu", ".cuh")}
    long = {name: lines for name, lines in lengths.items() if lines > 400}
    assert set(long) == set(LONG_FILES), long


def test_checkpoints_are_never_unpickled() -> None:
    loads = [line for line in matches(r"torch\.load\(", ".py") if "weights_only=True" not in line]
    assert not loads
    pickles = matches(r"\bpickle\.loads?\(|^\s*(import|from) pickle", ".py")
    assert not [line for line in pickles if not line.startswith("tests/")]  # tests make bad files


def test_no_shell_is_started() -> None:
    assert not matches(r"shell=True|os\.system\(", ".py")


def test_no_error_is_swallowed() -> None:
    silent = [
        f"{name}:{node.lineno}"
        for name, text in sources(".py")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and isinstance(node.body[0], ast.Pass)
    ]
    assert not silent


def test_nothing_is_left_unfinished() -> None:
    assert not matches(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError", ".py", ".cpp", ".h")


def test_no_path_of_one_machine_is_written_down() -> None:
    found = matches(r"(?<![\w.])/(work|tmp|farm|home|root)/", ".py", ".toml", ".md", ".txt", ".h")
    assert not [line for line in found if not line.startswith("tests/")]


def test_top_level_packages_are_links_inside_the_package() -> None:
    for name in ("export", "partition", "apps"):
        link = ROOT / "python" / "vitlet" / name
        assert link.is_symlink()
        assert link.readlink() == Path("../..") / name


def test_version_numbers_agree() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    declared = re.search(r'^version = "(.+)"$', pyproject, re.M)
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.M)
    assert declared and newest
    assert declared.group(1) == vitlet.__version__ == newest.group(1)


def test_every_extra_named_in_an_error_exists() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    table = pyproject.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", table, re.M))
    named = {extra for _, text in sources(".py") for extra in re.findall(r'\bextra="(\w+)"', text)}
    assert named and named <= extras


def test_runtime_side_imports_no_torch() -> None:
    code = """
import sys
import vitlet.data.preprocess, vitlet.data.tokenizer, vitlet.runtime.session, vitlet.models.registry
vitlet.list_models()
print([name for name in ("torch", "onnx", "coremltools", "tvm") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_runtime_imports_nothing_that_is_built_on_it() -> None:
    above = r"^\s*(from|import) vitlet\.(export|compress|layers|models|partition|apps)\b"
    assert not [line for line in matches(above, ".py") if line.startswith("python/vitlet/runtime/")]


def test_import_of_vitlet_needs_the_standard_library_only() -> None:
    code = """
import sys
before = set(sys.modules)
import vitlet
print(sorted({name.split(".")[0] for name in set(sys.modules) - before}
             - set(sys.stdlib_module_names) - {"vitlet"}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() in ("[]", "['numpy']")
