"""DeiT (Touvron et al., 2021, arXiv 2012.12877), without distillation token: names and facts."""

from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitlet.models.registry import ModelInfo, register

PREPROCESS = Preprocess(
    size=(224, 224),
    resize_to=256,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)

# name: width, heads, parameters, millions of MACs at 224x224
_SIZES = {
    "deit_tiny": (192, 3, 5_717_416, 1253.7),
    "deit_small": (384, 6, 22_050_664, 4598.9),
    "deit_base": (768, 12, 86_567_656, 17563.8),
}

register(
    *(
        ModelInfo(
            name=name,
            family="deit",
            kind="classifier",
            factory="vitlet.models.deit:deit",
            config={"dim": dim, "depth": 12, "heads": heads, "num_classes": 1000},
            preprocess=PREPROCESS,
            params=params,
            macs=macs,
            licence="Apache-2.0 (upstream README)",
            source="DeiT, Touvron et al., 2021; github.com/facebookresearch/deit",
        )
        for name, (dim, heads, params, macs) in _SIZES.items()
    )
)
