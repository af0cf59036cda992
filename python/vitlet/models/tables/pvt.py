"""PVT (Wang et al., 2021, arXiv 2102.12122) and PVTv2 (2022, arXiv 2106.13797): names and facts."""

from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitlet.models.registry import ModelInfo, register

PREPROCESS = Preprocess(
    size=(224, 224),
    resize_to=256,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

_WIDE = (64, 128, 320, 512)

# name: version, widths, depths, parameters, millions of MACs at 224x224
_SIZES = {
    "pvt_v1_tiny": (1, _WIDE, (2, 2, 2, 2), 13_229_288, 1932.9),
    "pvt_v2_b0": (2, (32, 64, 160, 256), (2, 2, 2, 2), 3_666_760, 566.1),
    "pvt_v2_b1": (2, _WIDE, (2, 2, 2, 2), 14_009_000, 2108.4),
    "pvt_v2_b2": (2, _WIDE, (3, 4, 6, 3), 25_362_856, 4026.7),
}

register(
    *(
        ModelInfo(
            name=name,
            family="pvt",
            kind="classifier",
            factory=f"vitlet.models.pvt_v{version}:pvt_v{version}",
            config={"dims": dims, "depths": depths, "num_classes": 1000},
            preprocess=PREPROCESS,
            params=params,
            macs=macs,
            licence="Apache-2.0 (upstream README)",
            source=f"PVT{'v2' if version == 2 else ''}, Wang et al.; github.com/whai362/PVT",
            notes=(
                "attention=softmax, linear_angular, binary, binary_batch or ksh builds "
                "ShiftAddViT's forms (You et al., 2023)"
            ),
        )
        for name, (version, dims, depths, params, macs) in _SIZES.items()
    )
)
