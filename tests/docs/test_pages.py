"""Every command and every Python block of the documentation runs as it is printed.

A page's blocks run in order in one folder, which holds `vitlet-demo/` as `make demo` leaves it. A
comment above a block changes that: ``<!-- not run: REASON -->`` or ``<!-- exit code: 4 -->``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from once import once
from run_demo import run_demo

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<note>[^>]+) -->\n)?```(?P<kind>python|console)\n(?P<text>.*?)```", re.S
)


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    line: int
    exit_code: int


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are to be run."""
    content = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(content):
        note = match["note"] or ""
        if note.startswith("not run: "):
            continue
        code = re.fullmatch(r"exit code: (\d+)", note)
        line = content.count("\n", 0, match.start("text"))
        found.append(Block(match["kind"], match["text"], line, int(code[1]) if code else 0))
    return found


def run(command: list[str], block: Block, page: Path, folder: Path) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    said = f"{page.name}:{block.line}: {command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == block.exit_code, said


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "demo", run_demo) / "vitlet-demo"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs_as_printed(page: Path, demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "vitlet-demo")
    for block in blocks(page):
        if block.kind == "python":
            run([sys.executable, "-c", block.text], block, page, tmp_path)
            continue
        lines = block.text.replace("\\\n", "").splitlines()
        for line in lines:
            if line.startswith("$ "):
                run(["bash", "-c", line.removeprefix("$ ")], block, page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
