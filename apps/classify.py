"""Classifies image files one batch at a time; a file that cannot be read does not stop the rest."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitlet.apps.files import write
from vitlet.errors import ImageError, UsageError
from vitlet.runtime.session import Prediction, load

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Answer:
    """What was seen in one file: guesses, best first, or the reason why there are none."""

    file: Path
    guesses: list[Prediction]
    error: str = ""


class Classifier:
    """A bundle that is ready to classify, by its own labels or prompts or by other prompts.

    Args:
        bundle: the bundle's folder.
        engine: "auto", "ort", "tvm" or "coreml".
        threads: threads to compute with.
        prompts: comma-separated class names that replace the bundle's (CLIP bundles with a text
            tower).

    Raises:
        UsageError: prompts for a model that takes none, or a CLIP bundle without any.
    """

    def __init__(
        self, bundle: Path, engine: str = "auto", threads: int = 1, prompts: str | None = None
    ) -> None:
        if bundle.is_file() or bundle.suffix == ".mlpackage":
            raise UsageError(
                f"{bundle} is a bare file without preprocessing or labels: give its bundle"
            )
        self.session = load(bundle, engine, threads=threads)
        manifest = self.session.manifest
        self._is_clip = manifest is not None and manifest.model.get("kind") == "clip"
        self._classes: tuple[str, ...] = ()
        self._text: NDArray[np.float32] | None = None
        if prompts is not None:
            self._use_prompts(prompts)
        elif self._is_clip and manifest is not None and manifest.prompts is None:
            raise UsageError(
                f'{bundle} has no class prompts: give --prompts "a dog,a cat", or export it '
                "with them"
            )

    def answers(
        self, files: Sequence[Path], topk: int, batch: int, advance: Callable[[], None]
    ) -> Iterator[Answer]:
        """Give an answer per file, in order; `advance` is called for each."""
        for begin in range(0, len(files), batch):
            part = files[begin : begin + batch]
            arrays = [self.read(file) for file in part]
            good = [array for array in arrays if not isinstance(array, str)]
            guesses = iter(self._guess(good, topk) if good else [])
            for file, array in zip(part, arrays, strict=True):
                yield (
                    Answer(file, [], array)
                    if isinstance(array, str)
                    else Answer(file, next(guesses))
                )
                advance()

    def read(self, file: Path) -> NDArray[np.uint8] | str:
        """Return an image as uint8 (H, W, C), or why it cannot be read."""
        from vitlet.data.image import load_image

        manifest = self.session.manifest
        try:
            return load_image(file, manifest.preprocess.mode if manifest else "RGB")
        except ImageError as error:
            return str(error)

    def _use_prompts(self, prompts: str) -> None:
        manifest = self.session.manifest
        if manifest is None or not self._is_clip:
            name = self.session.info.model
            raise UsageError(f"{name} classifies into its own labels: --prompts means nothing here")
        from vitlet.data.prompts import TEMPLATES, expand

        if manifest.prompts is None and "logit_scale" not in manifest.model:
            raise UsageError("the bundle does not say its logit scale: export it again")
        self._classes = tuple(name.strip() for name in prompts.split(",") if name.strip())
        if not self._classes:
            raise UsageError('--prompts must name at least one class, such as "a dog,a cat"')
        rows = []
        for texts in expand(self._classes, TEMPLATES["default"]):
            mean = self.session.encode_text(texts).mean(axis=0)
            rows.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
        self._text = np.stack(rows)

    def _guess(self, images: list[NDArray[np.uint8]], topk: int) -> list[list[Prediction]]:
        if self._text is None:
            return self.session.predict(images, topk)
        manifest = self.session.manifest
        assert manifest is not None  # a bundle, not a bare file
        scale = manifest.prompts.logit_scale if manifest.prompts else manifest.model["logit_scale"]
        logits = float(scale) * (self.session(images).astype(np.float64) @ self._text.T)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :topk]
        return [
            [Prediction(self._classes[i], int(i), float(row[i])) for i in best]
            for row, best in zip(scores, order, strict=True)
        ]


def write_csv(path: Path, answers: Sequence[Answer]) -> None:
    """Write one row per guess: file, rank, label, index, score; an unread file has its error."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "rank", "label", "index", "score", "error"))
    for answer in answers:
        for rank, guess in enumerate(answer.guesses, 1):
            table.writerow((answer.file, rank, guess.label, guess.index, f"{guess.score:.6f}", ""))
        if answer.error:
            table.writerow((answer.file, "", "", "", "", answer.error))
    write(path, text.getvalue())


def check_sheet_name(path: Path) -> None:
    """Refuse a name that says no picture format, before any work is done.

    Raises:
        UsageError: the ending is not one of a picture.
    """
    if path.suffix.lower() not in _PICTURES:
        raise UsageError(f"--sheet must end in {', '.join(_PICTURES)}, got {path}")


def write_sheet(path: Path, answers: Sequence[Answer], classifier: Classifier) -> list[Path]:
    """Draw the contact sheet; more than one page becomes NAME.png, NAME-2.png and so on."""
    from vitlet.apps.sheet import Tile, draw, thumbnail

    def tile(answer: Answer) -> Tile:
        array = answer.error or classifier.read(answer.file)
        if isinstance(array, str):
            return Tile(None, answer.file.name, array)
        best = answer.guesses[0]
        return Tile(thumbnail(array), answer.file.name, best.label, best.score)

    info = classifier.session.info
    title = f"{info.model}: {len(answers)} images"
    pages = draw(
        [tile(answer) for answer in answers],
        title,
        f"{info.file}, {info.engine} {info.engine_version}",
    )
    paths = [path if n == 0 else path.with_stem(f"{path.stem}-{n + 1}") for n in range(len(pages))]
    for place, page in zip(paths, pages, strict=True):
        write(place, page.save)
    return paths
