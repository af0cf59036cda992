"""Writes a bundle so that it is either whole or not there.

Everything is made in a temporary folder beside the final one, synced to disk, and renamed at the
end. An error, a full disk or Ctrl-C leaves what was there before and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitlet.errors import StorageError, UsageError, VitletError
from vitlet.runtime.manifest import MANIFEST, FileEntry, Manifest

UNVERIFIED = ".unverified"


@dataclass
class Draft:
    """A bundle in the making: write files into `folder`, then call `finish` once."""

    folder: Path
    out: Path
    force: bool
    finished: bool = False

    def finish(self, manifest: Manifest, *, verified: bool = True) -> Path:
        """Write the manifest and put the bundle in its place.

        Args:
            manifest: `files` is filled in here.
            verified: False keeps the bundle under another name, with ".unverified" at the end.

        Returns:
            Where the bundle is now.
        """
        manifest = replace(manifest, files=hash_files(self.folder))
        text = json.dumps(_finite(manifest.to_json()), indent=1, sort_keys=True, allow_nan=False)
        (self.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _settle(self.folder)
        out = self.out if verified else self.out.with_name(self.out.name + UNVERIFIED)
        _replace(self.folder, out, force=self.force or not verified)
        self.finished = True
        return out


def check_place(out: Path, *, force: bool) -> None:
    """Refuse a place where no bundle can or should be put, before any work starts.

    Raises:
        UsageError: something is there already, and `force` is not given or it is no bundle.
        StorageError: the folder that would hold it does not exist or cannot be written.
    """
    if out.is_symlink() or out.exists():
        if out.is_symlink() or not (out / MANIFEST).is_file():
            raise UsageError(
                f"{out} exists and is not a bundle: it is never replaced, choose another place"
            )
        if not force:
            raise UsageError(f"{out} exists: choose another place, or replace it with force")
    parent = out.parent
    if not parent.is_dir():
        raise StorageError(f"cannot write {out}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {out}: no permission to write into {parent}")


@contextmanager
def write_bundle(out: str | os.PathLike[str], *, force: bool = False) -> Iterator[Draft]:
    """Give a `Draft` to fill; what is not finished is removed on the way out.

    Raises:
        UsageError: `out` exists (see `check_place`).
        StorageError: the disk is full or cannot be written.
    """
    out = Path(out)
    check_place(out, force=force)
    folder: Path | None = None
    draft: Draft | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        draft = Draft(folder, out, force)
        yield draft
    except VitletError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write {out}: {reason}; nothing was left behind") from error
    finally:
        if folder is not None and not (draft and draft.finished):
            shutil.rmtree(folder, ignore_errors=True)


def hash_files(folder: Path) -> dict[str, FileEntry]:
    """Return the SHA-256 and size of every file in a folder but the manifest, by relative path."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256") if _FILE_DIGEST else _digest(file)
            entries[name] = FileEntry(digest.hexdigest(), path.stat().st_size)
    return entries


_FILE_DIGEST = hasattr(hashlib, "file_digest")  # Python 3.11


def _digest(file: Any) -> Any:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _settle(folder: Path) -> None:
    """Give files the usual permissions (tools and temporary folders differ) and sync them."""
    mask = os.umask(0)
    os.umask(mask)
    for path in [*sorted(folder.rglob("*")), folder]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(folder: Path, out: Path, *, force: bool) -> None:
    check_place(out, force=force)
    old: Path | None = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / "was"
        out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        if old is not None:
            old.rename(out)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)
    _sync(out.parent)
