"""`vitlet demo`, run by two modules of tests: its own, and that of the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_demo(folder: Path) -> None:
    """Fill FOLDER/vitlet-demo, and FOLDER/answer.json with what the command printed."""
    vitlet = Path(sys.executable).with_name("vitlet")
    done = subprocess.run(
        [vitlet, "demo", "--json", "--quiet"],
        cwd=folder, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (folder / "answer.json").write_text(done.stdout, encoding="utf-8")
