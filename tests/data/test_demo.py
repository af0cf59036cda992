from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vitlet.data.demo import demo_images

DATASET = Path("/usr/share/datasets/fashion-mnist")


def test_bundle_holds_twenty_images_of_each_class() -> None:
    images, labels, names = demo_images()
    assert images.shape == (200, 28, 28, 1) and images.dtype == np.uint8
    assert labels.shape == (200,) and labels.dtype == np.int64
    assert len(names) == 10 and names[9] == "Ankle boot"
    np.testing.assert_array_equal(np.bincount(labels), 20)


def test_bundled_images_are_all_different() -> None:
    images, _, _ = demo_images()
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.skipif(
    not DATASET.is_dir(), reason=f"{DATASET} is not there: apt install dataset-fashion-mnist"
)
def test_bundle_is_the_first_twenty_test_images_of_each_class() -> None:
    with gzip.open(DATASET / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(DATASET / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:20] for c in range(10)]))
    bundled, bundled_labels, _ = demo_images()
    np.testing.assert_array_equal(bundled, images[first])
    np.testing.assert_array_equal(bundled_labels, labels[first])


def test_demo_images_need_neither_torch_nor_pillow() -> None:
    code = (
        "import sys; from vitlet.data.demo import demo_images; demo_images();"
        "sys.exit(bool({'torch', 'PIL'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
