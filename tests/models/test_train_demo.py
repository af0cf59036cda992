"""The training script of the demo models, on a few images."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitlet.data.demo import demo_images

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_demo.py"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled images, in the files that the script reads, as training and test set."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    images, labels, _ = demo_images()
    for split in ("train", "t10k"):
        with gzip.open(folder / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes(16) + images.tobytes())
        with gzip.open(folder / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(bytes(8) + labels.astype(np.uint8).tobytes())
    return folder


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_training_twice_gives_the_same_weights_and_publishes_accuracy(
    dataset: Path, tmp_path: Path
) -> None:
    name = "casvit_fashion"
    for folder in ("one", "two"):
        ran = run(
            name, "--dataset", dataset, "--out", tmp_path / folder, "--epochs", "2", "--batch", "50"
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    one, two = (tmp_path / folder / f"{name}.safetensors" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    published = json.loads((tmp_path / "one" / "accuracy.json").read_text())[name]
    assert published["images"] == 200 and 0 <= published["top1"] <= 1
    again = run("--evaluate", name, "--dataset", dataset, "--out", tmp_path / "one")
    assert json.loads(again.stdout) == {"model": name, **published}


def test_missing_dataset_names_the_package(tmp_path: Path) -> None:
    ran = run("casvit_fashion", "--dataset", tmp_path)
    assert ran.returncode == 2
    assert "apt install dataset-fashion-mnist" in ran.stderr
