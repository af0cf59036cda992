"""The main job on the embedded model: export, prove, measure, classify real images, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitlet.apps import bench_run
from vitlet.apps.exporting import Request
from vitlet.apps.files import write
from vitlet.runtime.manifest import Artifact
from vitlet.runtime.progress import Progress
from vitlet.runtime.select import ENGINES
from vitlet.runtime.session import Prediction, load

if TYPE_CHECKING:
    from vitlet.runtime.bundle import Bundle

MODEL = "casvit_fashion"
_SAMPLES = 12  # pictures written as files, for the commands that the demo suggests
_BENCH_SECONDS = 3.0


@dataclass(frozen=True)
class Classified:
    """What one engine said of the bundled images.

    Attributes:
        engine: its name.
        accuracy: share of right answers, in [0, 1].
        guesses: the best guess per image.
        seconds: for all images, preprocessing included.
    """

    engine: str
    accuracy: float
    guesses: list[Prediction]
    seconds: float


@dataclass
class Demonstration:
    """The demo's steps, in order, and what they gave.

    Args:
        folder: where everything goes; it is made if it is not there.
        progress: told of each step.
        model: a classifier of the zoo with embedded weights.
    """

    folder: Path
    progress: Progress
    model: str = MODEL
    bundle: Bundle | None = None
    verification: Any = None
    measured: list[bench_run.Measured] = field(default_factory=list)
    classified: list[Classified] = field(default_factory=list)
    images: NDArray[np.uint8] | None = None
    truth: Sequence[str] = ()
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.started

    def export(self) -> Bundle:
        """Make and verify the bundle; an older one from this demo is replaced."""
        request = Request(
            self.model, "all", self.folder / f"{self.model}.vitlet",
            report=self.folder / "verification.html", settings={"force": True},
        )  # fmt: skip
        self.bundle = request.run(self.progress)
        self.verification = request.found
        return self.bundle

    def measure(self) -> list[bench_run.Measured]:
        """Measure every engine that runs here, and draw it."""
        from vitlet.apps import machine
        from vitlet.apps.bench_plot import plot

        path = self._bundle.path
        with self.progress("measure latency and memory"):
            jobs = bench_run.plan(path, None, None, [1], None, seed=0)
            self.measured = bench_run.measure(
                jobs, warmup=20, iters=None, seconds=_BENCH_SECONDS, cold=False,
                advance=lambda: None,
            )  # fmt: skip
            cpu = machine.hardware()["cpu"]
            plot(self.measured, self.folder / "bench.png", f"{path.name} on {cpu}")
        return self.measured

    def classify(self) -> list[Classified]:
        """Classify the bundled real images with every engine that was measured."""
        from vitlet.data.demo import demo_images

        self.images, numbers, labels = demo_images()
        self.truth = [labels[number] for number in numbers]
        for measured in self.measured:
            engine = measured.job.engine
            with self.progress(f"classify {len(self.images)} real images with {engine}"):
                session = load(self._bundle.path, engine)
                begin = time.perf_counter()
                guesses = [row[0] for row in session.predict(list(self.images), topk=1)]
                took = time.perf_counter() - begin
            right = sum(g.label == t for g, t in zip(guesses, self.truth, strict=True))
            accuracy = right / len(self.truth)
            self.classified.append(Classified(engine, accuracy, guesses, took))
        return self.classified

    def draw(self) -> Path:
        """Write the contact sheet, some images as files, and the report; return the report."""
        from PIL import Image

        from vitlet.apps.demo_report import html
        from vitlet.apps.sheet import Tile, draw, thumbnail

        assert self.images is not None  # `classify` comes first
        best = self.classified[0]
        tiles = [
            Tile(thumbnail(image), "", guess.label, guess.score, truth)
            for image, guess, truth in zip(self.images, best.guesses, self.truth, strict=True)
        ]
        pages = draw(
            tiles, f"{self.model}: {len(tiles)} real test images", f"classified by {best.engine}"
        )
        for number, page in enumerate(pages):
            path = self.folder / ("sheet.png" if number == 0 else f"sheet-{number + 1}.png")
            write(path, partial(page.save, optimize=True))
        for number, image in enumerate(self.images[:_SAMPLES]):
            picture = Image.fromarray(image[..., 0])
            name = self.truth[number].lower().replace("/", "-").replace(" ", "-")
            write(self.folder / "images" / f"{number:02d}-{name}.png", picture.save)
        report = self.folder / "report.html"
        write(report, html(self))
        return report

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per artefact: size, verification, accuracy, latency, memory."""
        return [self._row(artifact) for artifact in self._bundle.manifest.artifacts]

    @property
    def _bundle(self) -> Bundle:
        assert self.bundle is not None  # `export` comes first
        return self.bundle

    def _row(self, artifact: Artifact) -> dict[str, Any]:
        from vitlet.apps.readers.contents import folder_size

        engine = next(name for name, (target, *_) in ENGINES.items() if target == artifact.target)
        measured = next((m for m in self.measured if m.job.engine == engine), None)
        classified = next((c for c in self.classified if c.engine == engine), None)
        return {
            "target": artifact.target,
            "file": artifact.file,
            "precision": artifact.precision,
            "bytes": folder_size(self._bundle.file(artifact.file)),
            "status": artifact.verification.get("status"),
            "method": artifact.verification.get("method"),
            "cosine": artifact.verification.get("cosine"),
            "accuracy": classified.accuracy if classified else None,
            "p50_ms": measured.percentile(50) if measured else None,
            "p99_ms": measured.percentile(99) if measured else None,
            "peak_rss": measured.peak_rss if measured else None,
        }
