"""From what a user types, files, folders and globs, to a list of image files."""

from __future__ import annotations

import glob
from dataclasses import dataclass, field
from pathlib import Path

from vitlet.apps.hints import nearest_file
from vitlet.errors import UsageError

# Endings that make a file in a folder an image; a file that is named is tried whatever its ending.
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip


@dataclass
class Found:
    """Image files in order, and the other files in the folders that were searched."""

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find(arguments: list[str], *, recursive: bool = False) -> Found:
    """Return the images that the arguments mean.

    Raises:
        UsageError: an argument means nothing: no such file, a folder or pattern without images.
    """
    found = Found()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            _folder(path, recursive, found)
        elif path.exists():
            found.images.append(path)
        elif glob.has_magic(argument):
            matches = [Path(name) for name in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 - absolute too
            files = [match for match in matches if match.is_file()]
            if not files:
                raise UsageError(f"the pattern {argument!r} matches no file")
            found.images += files
        else:
            raise UsageError(f"the image {path} does not exist{nearest_file(path)}")
    return found


def _folder(path: Path, recursive: bool, found: Found) -> None:
    entries = sorted(path.rglob("*") if recursive else path.iterdir())
    files = [entry for entry in entries if entry.is_file()]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not images:
        hint = "" if recursive else "; --recursive looks into its folders too"
        raise UsageError(f"the folder {path} has no image ({', '.join(SUFFIXES[:5])}, ...){hint}")
    found.images += images
    found.others += [file for file in files if file.suffix.lower() not in SUFFIXES]
