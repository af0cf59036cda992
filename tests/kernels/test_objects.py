"""What the compiler made of the kernels: one object file for each kernel and instruction set."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "kernels"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="needs several instruction sets in one library",
    ),
    pytest.mark.skipif(
        any(shutil.which(tool) is None for tool in ("cmake", "nm", "objdump")),
        reason="needs cmake and binutils",
    ),
]
# The functions whose innermost loops multiply by the tile. gcc keeps the sums of such a loop in
# memory for small reasons, which halves its speed.
TILES = re.compile(r"::(attend|multiply|project|project_tile|tile_\w+)<")
MULTIPLIES = re.compile(r"vfn?madd\w+ps|vpdpbusd|vdpbf16ps|v?pmaddubsw|v?pmaddwd")
STACK = re.compile(r"\(%r[sb]p.*%[xyz]mm|%[xyz]mm.*\(%r[sb]p")
# Of the loops that have too few registers: loads and stores that are known.
KNOWN = {
    # Weights of 8 bits, without instructions for them, need their magnitudes and signs too.
    ("shift_linear", "avx2"): 4,
    ("shift_linear", "avx512"): 4,
    # The same, and bfloat16 without its instructions: the halves of a pair of weights.
    ("additive_token_mixer", "avx2"): 4,
    ("additive_token_mixer", "avxvnni"): 4,
}


def of_this_clone() -> list[Path]:
    """The objects that the installed core was linked from, if no source is newer."""
    found = sorted((ROOT / "build").glob("cp*/csrc/kernels/**/*.simd.cpp.o"))
    latest = max(path.stat().st_mtime for path in KERNELS.rglob("*") if path.is_file())
    fresh = all(path.stat().st_mtime >= latest for path in found)
    return found if fresh and len({path.parents[4] for path in found}) == 1 else []


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = of_this_clone() or compiled(tmp_path_factory)
    kernels = [path.name + ".o" for path in KERNELS.glob("*.simd.cpp")]
    assert kernels
    assert all(sum(path.name == kernel for path in found) in (3, 4, 5, 6) for kernel in kernels)
    return found


def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(kernels CXX)\n"
        "set(CMAKE_CXX_STANDARD 17)\nset(CMAKE_CXX_EXTENSIONS OFF)\n"
        "set(CMAKE_POSITION_INDEPENDENT_CODE ON)\n"
        f'add_subdirectory("{KERNELS}" kernels)\n',
        encoding="utf-8",
    )
    build = folder / "build"
    configure = ["-S", str(folder), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    for step in (configure, ["--build", str(build), "--parallel", "2"]):
        subprocess.run(["cmake", *step], check=True, capture_output=True, timeout=1800)
    return sorted(build.rglob("*.simd.cpp.o"))


def isa_of(path: Path) -> str:
    return path.parent.name.removesuffix(".dir").rsplit("_", 1)[1]


def test_no_instruction_sets_code_can_replace_anothers(objects: list[Path]) -> None:
    """A weak symbol is kept once for all copies of a kernel: perhaps the AVX-512 one."""
    for path in objects:
        isa = isa_of(path)
        symbols = subprocess.run(
            ["nm", "-C", "--defined-only", path], check=True, capture_output=True, text=True
        ).stdout
        for line in symbols.splitlines():
            kind, name = line[17], line[19:]
            assert kind not in "WVuC", f"{path.name} for {isa} defines the weak symbol {name}"
            assert kind.islower() or name.startswith(f"vitlet::{isa}::"), line


def functions(path: Path) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Each function's name and its instructions, by address."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for part in re.split(r"^[0-9a-f]+ <(?=.*>:$)", text, flags=re.M)[1:]:
        head, _, body = part.partition(">:\n")
        lines = re.findall(r"^\s*([0-9a-f]+):\t(.*)$", body, re.M)
        yield head, [(int(address, 16), instruction) for address, instruction in lines]


def innermost_loops(body: list[tuple[int, str]]) -> Iterator[list[str]]:
    jumps = [(re.match(r"j\w+\s+([0-9a-f]+) <", text), at) for at, text in body]
    loops = [(int(jump[1], 16), at) for jump, at in jumps if jump and int(jump[1], 16) <= at]
    for first, last in loops:
        inside = [(a, b) for a, b in loops if first <= a and b <= last and (a, b) != (first, last)]
        if not inside:
            yield [text for at, text in body if first <= at <= last]


def test_sums_of_a_tile_stay_in_registers(objects: list[Path]) -> None:
    checked = set()
    for path in objects:
        kernel, isa = path.name.removesuffix(".simd.cpp.o"), isa_of(path)
        if isa == "baseline":
            continue  # a compiler's choice for 16 registers of 128 bits
        for name, body in functions(path):
            if not TILES.search(name):
                continue
            for loop in innermost_loops(body):
                if sum(bool(MULTIPLIES.match(text)) for text in loop) < 16:
                    continue
                checked.add((kernel, isa))
                spilled = [text for text in loop if STACK.search(text)]
                assert len(spilled) <= KNOWN.get((kernel, isa), 0), (isa, name, spilled)
    assert {
        ("shift_linear", "avx512vnni"),
        ("additive_token_mixer", "avx512bf16"),
        ("hamming_attention", "avx512"),
    } <= checked
