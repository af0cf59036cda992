"""Writes a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitlet.errors import StorageError


def write(path: Path, content: str | bytes | Callable[[Path], Any]) -> None:
    """Write a file beside its place, then rename it; what was there stays until that succeeds.

    Args:
        path: where it goes; missing folders are made.
        content: text (UTF-8), bytes, or a function that writes to the path it is given (whose
            ending is that of `path`).

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(number)
        temporary = Path(name)
        if callable(content):
            content(temporary)
        elif isinstance(content, str):
            temporary.write_text(content, encoding="utf-8")
        else:
            temporary.write_bytes(content)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}: make room or choose another place"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before the work that it would show.

    Raises:
        UsageError: its ending is no format that can be written.
        MissingDependencyError: matplotlib is not installed.
    """
    from vitlet._extras import require
    from vitlet.errors import UsageError

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot must end in .png, .svg or .pdf, got {path}")
    require("matplotlib", extra="report", why="draw a plot")
