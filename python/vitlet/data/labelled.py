"""Pictures with the class of each: what sub-models are trained, fused and judged on (no torch).

Three sources: arrays in memory, a folder with one folder of image files per class, and the idx
files of Fashion-MNIST (Xiao et al., 2017) as Debian's package ``dataset-fashion-mnist`` installs
them.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.data.demo import demo_images
from vitlet.data.preprocess import resize_crop
from vitlet.data.spec import Preprocess
from vitlet.errors import CorruptInputError, ShapeError, UsageError

FASHION_VARIABLE = "VITLET_FASHION_MNIST"
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_FILES = {"train": "train", "test": "t10k"}
_MAGIC = {"images": 2051, "labels": 2049}


@dataclass(frozen=True)
class LabelledImages:
    """Pictures and the class of each.

    Attributes:
        images: uint8 (n, H, W, C), or the paths of n image files.
        labels: int64 (n,), class numbers.
        classes: class names; ``classes[labels[i]]`` is what picture i shows.
    """

    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or self.labels.ndim != 1:
            raise ShapeError(
                f"expected one label a picture, got {len(self.images)} pictures and labels of "
                f"shape {self.labels.shape}"
            )
        if len(self.labels) == 0:
            raise UsageError("the data hold no picture")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.classes):
            raise UsageError(
                f"labels go from {low} to {high}, but there are {len(self.classes)} class names"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64] | Sequence[int]) -> LabelledImages:
        """Return the pictures at `indices`, in that order."""
        chosen = np.asarray(indices, np.int64)
        if isinstance(self.images, tuple):
            files = tuple(self.images[int(i)] for i in chosen)
            return LabelledImages(files, self.labels[chosen], self.classes)
        return LabelledImages(self.images[chosen], self.labels[chosen], self.classes)

    def pixels(self, indices: NDArray[np.int64], spec: Preprocess) -> NDArray[np.uint8]:
        """Return the pictures at `indices` resized and cropped for a model: (B, H, W, C) uint8.

        Raises:
            ImageError: a file cannot be read.
            ShapeError: the array's pictures are not images.
        """
        if isinstance(self.images, tuple):
            return resize_crop([self.images[int(i)] for i in indices], spec)
        chosen = self.images[indices]
        shape = (*spec.size, spec.channels)
        kept = spec.resize == "squash" or spec.resize_to == min(spec.size)
        if chosen.shape[1:] == shape and kept:
            return chosen  # nothing to resize or to crop
        return resize_crop(chosen, spec)

    def counts(self) -> NDArray[np.int64]:
        """Return the number of pictures of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes)).astype(np.int64)

    def require_every_class(self, classes: Sequence[int], *, least: int = 1) -> None:
        """Refuse data that lack pictures of some class.

        Raises:
            UsageError: a class of `classes` has fewer than `least` pictures; it names them.
        """
        counts = self.counts()
        short = [c for c in classes if c >= len(counts) or counts[c] < least]
        if short:
            names = [self.classes[c] if c < len(self.classes) else f"class {c}" for c in short]
            more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
            raise UsageError(
                f"expected at least {least} picture{'s' if least > 1 else ''} of every class, but "
                f"{', '.join(names[:5])}{more} ha{'s' if len(names) == 1 else 've'} fewer"
            )

    def fingerprint(self) -> str:
        """Return a SHA-256 of the pictures (of files: their names and sizes), labels and names."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(np.ascontiguousarray(self.labels, "<i8").tobytes())
        if isinstance(self.images, tuple):
            for path in self.images:
                digest.update(f"{path.parent.name}/{path.name}\0{path.stat().st_size}\0".encode())
        else:
            digest.update(str(self.images.shape).encode())
            digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()


def image_folder(folder: str | os.PathLike[str]) -> LabelledImages:
    """Read a folder that holds one folder of image files per class.

    Classes are the inner folders' names in sorted order; an empty one stays a class. The files are
    opened when their pixels are asked for.

    Raises:
        UsageError: no such folder, no class folders in it, or no image in any of them.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"expected a folder of class folders, and {root} is not a folder")
    names = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UsageError(f"expected one folder of images per class in {root}, found none")
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        found = sorted(p for p in (root / name).iterdir() if p.suffix.lower() in _SUFFIXES)
        files += found
        labels += [number] * len(found)
    if not files:
        raise UsageError(f"no image files ({', '.join(_SUFFIXES[:3])}...) in {root}/*/")
    return LabelledImages(tuple(files), np.array(labels, np.int64), tuple(names))


def fashion_mnist(
    split: Literal["train", "test"], folder: str | os.PathLike[str] | None = None
) -> LabelledImages:
    """Read Fashion-MNIST: 60,000 ("train") or 10,000 ("test") grey pictures of 28x28.

    Args:
        split: which of the two.
        folder: where the four ``.gz`` files are; by default the environment variable
            ``VITLET_FASHION_MNIST``, else where Debian's package puts them.

    Raises:
        UsageError: no such split, or the files are not there.
        CorruptInputError: a file is damaged.
    """
    if split not in _FILES:
        raise UsageError(f'expected split "train" or "test", got {split!r}')
    place = Path(folder or os.environ.get(FASHION_VARIABLE) or FASHION_FOLDER)
    images = _idx(place / f"{_FILES[split]}-images-idx3-ubyte.gz", "images")
    labels = _idx(place / f"{_FILES[split]}-labels-idx1-ubyte.gz", "labels")
    if len(images) != len(labels) or len(labels) == 0 or labels.max() > 9:
        raise CorruptInputError(f"the pictures and labels in {place} do not go together")
    _, _, names = demo_images()
    return LabelledImages(images[..., None], labels.astype(np.int64), names)


def _idx(path: Path, what: Literal["images", "labels"]) -> NDArray[np.uint8]:
    if not path.is_file():
        raise UsageError(
            f"no {path}: install Debian's dataset-fashion-mnist, or set {FASHION_VARIABLE} to the "
            "folder of the four .gz files"
        )
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptInputError(f"{path} is damaged: {error}") from None
    start = 16 if what == "images" else 8
    header = [int.from_bytes(content[at : at + 4], "big") for at in range(0, start, 4)]
    if header[0] != _MAGIC[what] or math.prod(header[1:]) != len(content) - start:
        raise CorruptInputError(f"{path} is not an idx file of {what}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(header[1:])
