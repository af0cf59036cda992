"""Small models trained on Fashion-MNIST (Xiao et al., 2017) and shipped in the package."""

from vitlet.data.spec import Preprocess
from vitlet.models.registry import ModelInfo, register

_MEAN, _STD = (0.2860,), (0.3530,)

register(
    ModelInfo(
        name="casvit_fashion",
        family="demo",
        kind="classifier",
        factory="vitlet.models.casvit:casvit",
        config={
            "depths": (2, 2, 2, 1),
            "dims": (32, 64, 80, 96),
            "num_classes": 10,
            "img_size": 32,
            "in_chans": 1,
            "distillation": False,
        },
        preprocess=Preprocess(size=(32, 32), resize_to=32, mean=_MEAN, std=_STD, mode="L"),
        params=655_162,
        macs=5.5,
        licence="Apache-2.0",
        source="trained by scripts/train_demo.py on Fashion-MNIST",
        weights="models/assets/casvit_fashion.safetensors",
        labels="data/assets/fashion_labels.txt",
    ),
    ModelInfo(
        name="vit_fashion",
        family="demo",
        kind="classifier",
        factory="vitlet.models.deit:deit",
        config={
            "dim": 96,
            "depth": 6,
            "heads": 3,
            "patch_size": 4,
            "num_classes": 10,
            "img_size": 28,
            "in_chans": 1,
        },
        preprocess=Preprocess(size=(28, 28), resize_to=28, mean=_MEAN, std=_STD, mode="L"),
        params=678_730,
        macs=36.1,
        licence="Apache-2.0",
        source="trained by scripts/train_demo.py on Fashion-MNIST",
        weights="models/assets/vit_fashion.safetensors",
        labels="data/assets/fashion_labels.txt",
    ),
)
