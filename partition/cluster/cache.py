"""The bundles and plans that a worker holds on disk; both survive its restarts.

    bundles/SHA256/      a whole bundle, checked; SHA256 is that of its manifest
    parts/SHA256/        a bundle that is still coming: its files end where the next chunk begins
    plans/HASH.json      a plan, as it was sent, with its signature
    loaded.json          the slots to load at the next start

A bundle moves from `parts` to `bundles` by one rename, after every hash was compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vitlet.errors import BundleError, StorageError, VitletError
from vitlet.partition.plan import Plan
from vitlet.runtime.bundle import MANIFEST_LIMIT, Bundle, open_bundle, parse_json, safe_name
from vitlet.runtime.manifest import MANIFEST, Manifest

MAX_BUNDLE = 4 << 30  # bytes
_HEX = set("0123456789abcdef")


class Cache:
    """A folder of bundles and plans.

    Args:
        root: the folder; made when it is not there.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        with _storage(self.root):
            for name in ("bundles", "parts", "plans"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def bundle(self, sha256: str) -> Bundle | None:
        """Open a bundle that is whole; None when it is not here. A damaged one is removed."""
        folder = self._folder("bundles", sha256)
        if not folder.is_dir():
            return None
        try:
            if _digest((folder / MANIFEST).read_bytes()) == sha256:
                return open_bundle(folder)
        except (BundleError, OSError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def begin(self, sha256: str, manifest: bytes) -> dict[str, int]:
        """Make ready for a bundle's files.

        Args:
            sha256: of the manifest.
            manifest: content of `manifest.json`.

        Returns:
            name -> bytes that are already here; all of them for a bundle that is whole.

        Raises:
            BundleError: the manifest is not the one of `sha256`, or is unsafe.
            StorageError: there is no room.
        """
        if len(manifest) > MANIFEST_LIMIT or _digest(manifest) != sha256:
            raise BundleError("the manifest that came is not the one of the plan")
        files = Manifest.from_json(parse_json(manifest, MANIFEST)).files
        for name in files:
            if not safe_name(name) or name == MANIFEST:
                raise BundleError(f"the manifest lists the unsafe path {name!r}: refused")
        if self.bundle(sha256) is not None:
            return {name: entry.size for name, entry in files.items()}
        folder = self._folder("parts", sha256)
        held = {name: _size(folder / name) for name in files}
        for name, entry in files.items():
            if held[name] > entry.size:
                (folder / name).unlink()
                held[name] = 0
        self._need_room(sum(e.size for e in files.values()) - sum(held.values()))
        with _storage(folder):
            folder.mkdir(exist_ok=True, mode=0o700)
            for name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            (folder / MANIFEST).write_bytes(manifest)
        return held

    def write(self, sha256: str, name: str, offset: int, data: bytes) -> int:
        """Append a chunk of a file and return how many bytes are here now.

        A chunk that does not begin where the file ends is not written: the answer says where to
        go on.

        Raises:
            BundleError: no such bundle is coming, or it has no such file, or the chunk exceeds it.
            StorageError: the disk is full; what came before stays.
        """
        folder = self._folder("parts", sha256)
        try:
            files = Manifest.from_json(parse_json((folder / MANIFEST).read_bytes(), name)).files
        except OSError:
            raise BundleError("a chunk came of a bundle that was not begun") from None
        if name not in files:
            raise BundleError(f"the bundle that is coming has no file {name!r}")
        held = _size(folder / name)
        if offset != held:
            return held
        if held + len(data) > files[name].size:
            raise BundleError(f"{name} is longer than its manifest says: refused")
        self._need_room(len(data))
        with _storage(folder / name):
            try:
                with (folder / name).open("ab") as file:
                    file.write(data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(folder / name, held)  # a half-written chunk
                raise
        return held + len(data)

    def finish(self, sha256: str) -> Bundle:
        """Check a bundle whose files have all come, and put it in its place.

        Raises:
            BundleError: it is incomplete, or a file is not what the manifest says; such files are
                removed, so that they come again.
            StorageError: it cannot be moved.
        """
        there = self.bundle(sha256)
        if there is not None:
            return there
        folder = self._folder("parts", sha256)
        bundle = open_bundle(folder, hashes=False)
        for name in bundle.manifest.files:
            try:
                bundle.check([name])
            except BundleError:
                (folder / name).unlink(missing_ok=True)
                raise
        final = self._folder("bundles", sha256)
        with _storage(final):
            _sync(folder, bundle.manifest.files)
            folder.rename(final)
        return open_bundle(final, hashes=False)

    def save_plan(self, plan: Plan, proof: dict[str, str]) -> None:
        """Keep a plan and who signed it."""
        content = json.dumps({"plan": plan.to_json(), "proof": proof})
        self._write(self.root / "plans" / f"{plan.hash}.json", content)

    def plans(self) -> Iterator[tuple[Plan, dict[str, str]]]:
        """Return the plans that are here and sound, with who signed them."""
        for path in sorted((self.root / "plans").glob("*.json")):
            try:
                data = parse_json(path.read_bytes(), path.name)
                plan = Plan.from_json(data["plan"])
                if plan.hash == path.stem:
                    yield plan, dict(data["proof"])
            except (VitletError, OSError, KeyError, TypeError, ValueError):
                path.unlink(missing_ok=True)  # it comes again

    def save_loaded(self, loaded: Iterable[tuple[str, int]]) -> None:
        """Remember the slots, plan and index, to load at the next start."""
        self._write(self.root / "loaded.json", json.dumps(sorted(loaded)))

    def loaded(self) -> list[tuple[str, int]]:
        """Return the slots that were loaded when this was last saved."""
        try:
            data: Any = parse_json((self.root / "loaded.json").read_bytes(), "loaded.json")
            return [(str(plan), int(slot)) for plan, slot in data]
        except (OSError, BundleError, TypeError, ValueError):
            return []

    def _folder(self, kind: str, sha256: str) -> Path:
        if len(sha256) != 64 or set(sha256) - _HEX:
            raise BundleError(f"{sha256!r} is not a SHA-256")
        return self.root / kind / sha256

    def _need_room(self, size: int) -> None:
        with _storage(self.root):
            free = shutil.disk_usage(self.root).free
        if size > min(free, MAX_BUNDLE):
            raise StorageError(
                f"the bundle needs {size} bytes and there is room for {min(free, MAX_BUNDLE)} in "
                f"{self.root}: make room or choose another --cache"
            )

    def _write(self, path: Path, content: str) -> None:
        part = path.with_name(f".{path.name}.part")
        with _storage(path):
            part.write_text(content, encoding="utf-8")
            part.replace(path)


def default_cache() -> Path:
    """Return where a worker keeps its bundles: below the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitlet" / "worker"


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sync(folder: Path, names: Iterable[str]) -> None:
    """Make sure that what the rename promises is on the disk."""
    for name in (*names, MANIFEST):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
