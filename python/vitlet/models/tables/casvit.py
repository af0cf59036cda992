"""CAS-ViT (Zhang et al., 2024, arXiv 2408.03703): names and facts."""

from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitlet.models.registry import ModelInfo, register

PREPROCESS = Preprocess(
    size=(224, 224),
    resize_to=256,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

# name: depths, dims, parameters with both heads, millions of MACs at 224x224
_SIZES = {
    "casvit_xs": ((2, 2, 4, 2), (48, 56, 112, 220), 3_200_700, 546.8),
    "casvit_s": ((3, 3, 6, 3), (48, 64, 128, 256), 5_764_224, 912.0),
    "casvit_m": ((3, 3, 6, 3), (64, 96, 192, 384), 12_421_520, 1859.1),
    "casvit_t": ((3, 3, 6, 3), (96, 128, 256, 512), 21_763_120, 3556.9),
}

register(
    *(
        ModelInfo(
            name=name,
            family="casvit",
            kind="classifier",
            factory="vitlet.models.casvit:casvit",
            config={"depths": depths, "dims": dims, "num_classes": 1000, "distillation": True},
            preprocess=PREPROCESS,
            params=params,
            macs=macs,
            licence="code MIT (upstream LICENSE); weights: see upstream",
            source="CAS-ViT, Zhang et al., 2024; github.com/Tianfang-Zhang/CAS-ViT",
            squash_from=384,
        )
        for name, (depths, dims, params, macs) in _SIZES.items()
    )
)
