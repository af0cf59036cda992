"""A real classifier, small enough to be exported to every target in seconds, and its bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vitlet.apps.cli import main

LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat")
SIZE = 32


OWN_MODEL = """
import torch
from torch import nn
from vitlet.data.spec import Preprocess
from vitlet.models.registry import ModelInfo

def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4),
    )
    return model.eval()

def with_info():
    model = build()
    model.info = ModelInfo(
        "own", "custom", "classifier", "own:build", {}, Preprocess((32, 32), resize_to=32),
        params=1, macs=1.0, licence="MIT", source="here",
    )
    return model

def number():
    return 3
"""


@dataclass(frozen=True)
class Ran:
    """How a run of the command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the command line in this process, as on an 80-column terminal without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("VITLET_DEBUG", raising=False)

    def run(*argv: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        return Ran(code, *capsys.readouterr())

    return run


@pytest.fixture
def process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(
        *argv: object, code: str | None = None, **options: object
    ) -> subprocess.CompletedProcess[str]:
        start = code or "import sys; from vitlet.apps.cli import main; sys.exit(main())"
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "80", **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-c", start, *map(str, argv)],
            capture_output=True, text=True, timeout=120, env=environment, **options,
        )  # fmt: skip

    return run


def toy() -> object:
    """A convolutional classifier of 32x32 images, with an `info`."""
    import torch
    from torch import nn

    from vitlet.data.spec import Preprocess
    from vitlet.models.registry import ModelInfo

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, len(LABELS)),
    ).eval()
    model.info = ModelInfo(
        "toy", "demo", "classifier", "tests:toy", {}, Preprocess((SIZE, SIZE), resize_to=36),
        params=1000, macs=1.0, licence="Apache-2.0", source="made up",
    )  # fmt: skip
    return model


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, exported to all three targets and verified."""
    from vitlet.export.api import export

    folder = tmp_path_factory.mktemp("bundle")
    return export(toy(), "all", folder / "toy.vitlet", labels=LABELS).path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three images and a text file."""
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60)), ("b.jpg", (64, 48)), ("c.webp", (32, 32))):
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def own_source() -> Callable[[int], str]:
    """The text of a user's module with models of a given width."""
    return lambda width: OWN_MODEL.replace("WIDTH", str(width))


@pytest.fixture(scope="session")
def clip_bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A toy with an image and a text tower as two bundles: with prompts baked in, and without."""
    import torch
    from torch import nn

    from vitlet.data.spec import Preprocess
    from vitlet.export.api import export
    from vitlet.models.registry import ModelInfo

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(49408, 16)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.words(tokens).mean(dim=1)

    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_tower = nn.Sequential(
                nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Flatten(), nn.Linear(8 * 64, 16)
            )
            self.text_tower = Text()
            self.logit_scale = nn.Parameter(torch.tensor(3.0))

    torch.manual_seed(0)
    model = Clip().eval()
    model.info = ModelInfo(
        "toy_clip", "demo", "clip", "tests:clip", {}, Preprocess((SIZE, SIZE), resize_to=SIZE),
        params=1000, macs=1.0, licence="Apache-2.0", source="made up",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    baked = export(model, "onnx", folder / "baked.vitlet", prompts=["a dog", "a cat", "a cow"])
    return baked.path, export(model, "onnx", folder / "plain.vitlet").path
