"""Opens a bundle and trusts nothing in it before it is checked.

Neither ONNX, Core ML nor shared libraries carry a checksum, and engines run a file with a flipped
bit without a word; so the manifest lists the SHA-256 and size of every file, and a bundle that
differs in any way (a changed, missing or extra file, a link, a path that leaves it) is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vitlet.errors import BundleError
from vitlet.runtime.manifest import MANIFEST, SCHEMA, TARGETS, FileEntry, Manifest, TensorSpec

MANIFEST_LIMIT = 32 << 20  # bytes; a bundle with 20,000 class names needs under 1 MiB
FILES_LIMIT = 10_000
DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
_BUFFER = 1 << 20  # bytes: large enough that hashing, not reading, sets the speed


@dataclass(frozen=True)
class Bundle:
    """An open bundle: its folder and its manifest.

    Attributes:
        path: the bundle's folder, absolute.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of a listed file, or of a folder of listed files (an `.mlpackage`).

        The name is checked, the content is not: `check` does that.

        Raises:
            BundleError: the manifest does not list it.
        """
        if not self.names(name):
            raise BundleError(
                f"{self.path.name} has no file {name!r}: its manifest does not say so"
            )
        return self.path / name

    def names(self, name: str) -> list[str]:
        """Return the listed files that `name`, a file or a folder, stands for."""
        if name in self.manifest.files:
            return [name]
        return [listed for listed in self.manifest.files if listed.startswith(f"{name}/")]

    def check(self, names: Iterable[str] | None = None) -> None:
        """Compare sizes and hashes with the manifest.

        Args:
            names: files or folders to check; every file when None.

        Raises:
            BundleError: a file was changed, cut, is a link, or is not there or not listed.
        """
        wanted: Iterable[str] = self.manifest.files
        if names is not None:
            wanted = [listed for name in names for listed in self._listed(name)]
        for name in wanted:
            _check_file(self.path, name, self.manifest.files[name])

    def _listed(self, name: str) -> list[str]:
        self.file(name)
        return self.names(name)


def open_bundle(path: str | os.PathLike[str], *, hashes: bool = True) -> Bundle:
    """Open a bundle folder.

    Args:
        path: the folder that holds `manifest.json`.
        hashes: compare every file with its hash now. With False only the structure is checked
            (paths, links, sizes, missing and extra files); call `Bundle.check` on what you use.

    Raises:
        BundleError: not a bundle, or one that is damaged, changed or unsafe in any way.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise BundleError(f"{root} {what}: expected a bundle, which is a folder NAME.vitlet")
    root = root.resolve()
    manifest = Manifest.from_json(read_json(root, MANIFEST))
    _check_manifest(root, manifest)
    _check_structure(root, manifest)
    bundle = Bundle(root, manifest)
    if hashes:
        bundle.check()
    return bundle


def safe_name(name: str) -> bool:
    """Tell whether `name` is a plain relative path with forward slashes that stays inside."""
    return (
        0 < len(name) <= 1024
        and name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


def read_json(root: Path, name: str) -> Any:
    """Return what a JSON file in a folder says; see `parse_json`.

    Raises:
        BundleError: it is not there, is a link, is too large or is damaged.
    """
    with _open(root, name) as file:
        return parse_json(file.read(MANIFEST_LIMIT + 1), str(root / name))


def parse_json(text: bytes, name: str) -> Any:
    """Parse JSON that is not trusted: duplicate keys and NaN are refused, as JSON says they should.

    Args:
        text: UTF-8.
        name: of the file, for the message.

    Raises:
        BundleError: it is too large or damaged.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key comes twice")
        return made

    def no_constant(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    if len(text) > MANIFEST_LIMIT:
        raise BundleError(f"{name} is larger than {MANIFEST_LIMIT} bytes: refused")
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is damaged: {error}") from None


def _check_manifest(root: Path, manifest: Manifest) -> None:
    """Check what the manifest says against itself: kinds, names, hashes, sizes, references."""
    files = manifest.files
    model = manifest.model
    if (
        type(manifest.schema) is not int
        or not isinstance(manifest.vitlet, str)
        or not isinstance(model, dict)
        or not isinstance(model.get("name"), str)
        or not isinstance(manifest.golden, dict)
        or not isinstance(manifest.tokenizer, str | None)
    ):
        raise BundleError(f"{root / MANIFEST} does not follow schema {SCHEMA}: a field's kind")
    if len(files) > FILES_LIMIT:
        raise BundleError(f"{root.name} lists {len(files)} files, the limit is {FILES_LIMIT}")
    for name, entry in files.items():
        if not safe_name(name) or name == MANIFEST:
            raise BundleError(f"{root.name} lists the unsafe path {name!r}: refused")
        sound = isinstance(entry.sha256, str) and len(entry.sha256) == 64
        if not sound or set(entry.sha256) - set("0123456789abcdef"):
            raise BundleError(f"{root.name}: {name} has no SHA-256 in the manifest")
        if type(entry.size) is not int or not 0 <= entry.size < 2**40:
            raise BundleError(f"{root.name}: {name} has the absurd size {entry.size!r}")
    used = [artifact.file for artifact in manifest.artifacts]
    used += [manifest.prompts.file] if manifest.prompts else []
    used += list(manifest.golden.values())
    folders = {str(p) for name in files for p in PurePosixPath(name).parents} - {"."}
    for used_name in used:
        if not isinstance(used_name, str) or (used_name not in files and used_name not in folders):
            raise BundleError(f"{root.name} speaks of {used_name!r} and does not list it")
    for artifact in manifest.artifacts:
        if artifact.target not in TARGETS:
            raise BundleError(
                f"{root.name} has an artefact for {artifact.target!r}: schema {SCHEMA} knows "
                f"{', '.join(TARGETS)}"
            )
        if not isinstance(artifact.graph, str) or not isinstance(artifact.details, dict):
            raise BundleError(
                f"{root.name}: the entry of {artifact.file} has a wrong graph or details"
            )
        for spec in (*artifact.inputs, *artifact.outputs):
            _check_spec(root, artifact.file, spec)
    texts = [*(manifest.labels or ()), *(manifest.prompts.classes if manifest.prompts else ())]
    if not all(isinstance(text, str) for text in texts):
        raise BundleError(f"{root.name} has a label that is not text")


def _check_spec(root: Path, file: str, spec: TensorSpec) -> None:
    sizes_ok = all(
        isinstance(size, str) or (type(size) is int and 0 < size < 2**31) for size in spec.shape
    )
    if not isinstance(spec.name, str) or spec.dtype not in DTYPES or not sizes_ok:
        raise BundleError(f"{root.name}: the entry of {file} has the senseless tensor {spec}")


def _check_structure(root: Path, manifest: Manifest) -> None:
    """Walk the folder: every entry is a listed plain file of the listed size, or their parent."""
    found: set[str] = set()
    folders = {str(p) for name in manifest.files for p in PurePosixPath(name).parents}
    for name, entry in _walk(root, root):
        if entry.is_symlink():
            raise BundleError(f"{root.name}/{name} is a link: a bundle holds plain files only")
        if entry.is_dir(follow_symlinks=False):
            if name not in folders:
                raise BundleError(f"{root.name}/{name} is a folder that the manifest does not list")
            continue
        if not entry.is_file(follow_symlinks=False):
            raise BundleError(f"{root.name}/{name} is not a plain file: refused")
        if name == MANIFEST:
            continue
        if name not in manifest.files:
            raise BundleError(
                f"{root.name}/{name} is not in the manifest: remove it or export again"
            )
        found.add(name)
        size = entry.stat(follow_symlinks=False).st_size
        _check_size(root, name, size, manifest.files[name])
    missing = sorted(set(manifest.files) - found)
    if missing:
        raise BundleError(f"{root.name} is incomplete: {', '.join(missing[:5])} is not there")


def _walk(root: Path, folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BundleError(f"cannot read {folder}: {error.strerror}") from error
    for entry in listed:
        yield Path(entry.path).relative_to(root).as_posix(), entry
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, Path(entry.path))


def _check_size(root: Path, name: str, size: int, entry: FileEntry) -> None:
    if size != entry.size:
        raise BundleError(
            f"{root.name}/{name} has {size} bytes, the manifest says {entry.size}: "
            "it was changed or cut; copy the bundle again or export again"
        )


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BUFFER, entry.size + 1)))
    total = 0
    with _open(root, name) as file:
        _check_size(root, name, os.fstat(file.fileno()).st_size, entry)
        while (count := file.readinto(buffer)) and total <= entry.size:
            digest.update(buffer[:count])
            total += count
    _check_size(root, name, total, entry)
    if digest.hexdigest() != entry.sha256:
        raise BundleError(
            f"{root.name}/{name} was changed after the bundle was made: its SHA-256 is "
            f"{digest.hexdigest()[:12]}..., the manifest says {entry.sha256[:12]}...; "
            "copy the bundle again or export again"
        )


def _open(root: Path, name: str) -> Any:
    """Open a file of the bundle unbuffered, refusing a link anywhere on the way to it."""
    path = root / name
    for parent in (path, *path.parents):
        if parent == root:
            break
        if parent.is_symlink():
            raise BundleError(f"{parent} is a link: a bundle holds plain files only")
    try:
        # Non-blocking, so that a pipe in the file's place cannot hang the open.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise BundleError(f"{root.name} is incomplete: {name} is not there") from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is not a plain file: refused")
    return os.fdopen(descriptor, "rb", buffering=0)
