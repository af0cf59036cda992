"""A tiny data set whose classes can be learned, and a tiny ViT that has learned them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cluster_fixtures import *  # noqa: F403 - fixtures
from torch.nn import functional as F

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Recipe, Run, train
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.models.deit import DeiT
from vitlet.models.registry import ModelInfo
from vitlet.partition.submodels.features import logits

SPEC = Preprocess(size=(8, 8), resize_to=8, mean=(0.5,), std=(0.25,), mode="L")
CONFIG = {
    "dim": 32, "depth": 2, "heads": 4, "patch_size": 4, "num_classes": 6, "img_size": 8,
    "in_chans": 1,
}  # fmt: skip


def made_data(count: int, seed: int) -> LabelledImages:
    """Noise over one pattern a class; the patterns do not depend on the seed."""
    patterns = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 6
    noise = rng.normal(0, 45, (count, 8, 8, 1))
    images = np.clip(0.45 * patterns[labels] + 70 + noise, 0, 255).astype(np.uint8)
    return LabelledImages(images, labels.astype(np.int64), tuple("abcdef"))


@pytest.fixture(scope="session")
def data() -> LabelledImages:
    return made_data(600, seed=1)


@pytest.fixture(scope="session")
def test_data() -> LabelledImages:
    return made_data(300, seed=2)


@pytest.fixture(scope="session")
def pictures(data: LabelledImages) -> Pictures:
    return Pictures(data, SPEC)


@pytest.fixture(scope="session")
def full(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> DeiT:
    torch.manual_seed(0)
    model = DeiT(**CONFIG)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
    run = Run(
        "full",
        model,
        pictures.shuffled,
        lambda i, rng: F.cross_entropy(logits(model, pictures.batch(i)), pictures.labels[i]),
        Recipe(epochs=8, batch=50, lr=3e-3, average=0.9),
        0,
        {},
    )
    train(run, tmp_path_factory.mktemp("full"))
    model.info = ModelInfo(  # type: ignore[assignment]
        name="deit", family="deit", kind="classifier", factory="vitlet.models.deit:deit",
        config=dict(CONFIG), preprocess=SPEC, params=0, macs=0.0, licence="", source="a test",
    )  # fmt: skip
    return model
