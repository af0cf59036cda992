"""MobileCLIP (Vasu et al., 2024) and MobileCLIP2 (Faghri et al., 2025): names and facts."""

from __future__ import annotations

from typing import Any

from vitlet.data.spec import OPENAI_MEAN, OPENAI_STD, Preprocess
from vitlet.models.registry import ModelInfo, register

_PLAIN_256 = Preprocess(size=(256, 256), resize_to=256)
_PLAIN_224 = Preprocess(size=(224, 224), resize_to=224)
_OPENAI_256 = Preprocess(size=(256, 256), resize_to=256, mean=OPENAI_MEAN, std=OPENAI_STD)
_OPENAI_224 = Preprocess(
    size=(224, 224), resize_to=224, interpolation="bicubic", mean=OPENAI_MEAN, std=OPENAI_STD
)

_WIDE: dict[str, Any] = {"embed_dim": 768, "text_width": 768, "text_heads": 12}

# name: configuration, preprocessing, parameters, millions of MACs of one image
_FIRST: dict[str, tuple[dict[str, Any], Preprocess, int, float]] = {
    "mobileclip_s0": (
        {"image": "mci0", "text_layers": 4, "text_mixers": True},
        _PLAIN_256,
        53_847_681,
        2385.1,
    ),
    "mobileclip_s1": ({"image": "mci1"}, _PLAIN_256, 84_969_217, 4658.3),
    "mobileclip_s2": ({"image": "mci2"}, _PLAIN_256, 99_242_817, 7834.2),
    "mobileclip_b": ({"image": "vit_b16", "causal": True}, _PLAIN_224, 149_776_641, 17708.0),
}
_SECOND: dict[str, tuple[dict[str, Any], Preprocess, int, float]] = {
    "mobileclip2_s0": ({"image": "mci0"}, _PLAIN_256, 74_835_073, 2385.1),
    "mobileclip2_s2": ({"image": "mci2"}, _PLAIN_256, 99_243_329, 7834.2),
    "mobileclip2_b": ({"image": "vit_b16", "causal": True}, _PLAIN_224, 149_777_153, 17708.0),
    "mobileclip2_s3": ({"image": "mci3", **_WIDE}, _OPENAI_256, 248_885_953, 14812.0),
    "mobileclip2_l14": ({"image": "vit_l14", **_WIDE}, _OPENAI_224, 427_617_281, 81012.8),
    "mobileclip2_s4": ({"image": "mci4", **_WIDE}, _OPENAI_256, 445_435_137, 27757.9),
}
_NOTES = {
    "mobileclip_b": "Takes the checkpoints of MobileCLIP-B and of MobileCLIP-B (LT).",
}

register(
    *(
        ModelInfo(
            name=name,
            family=family,
            kind="clip",
            factory="vitlet.models.mobileclip:mobileclip",
            config={**config, "layout": layout, "img_size": preprocess.size[0]},
            preprocess=preprocess,
            params=params,
            macs=macs,
            licence=licence,
            source=source,
            notes=_NOTES.get(name, ""),
        )
        for family, layout, licence, source, models in (
            (
                "mobileclip",
                "apple",
                "weights: apple-amlr on the model hub (research only); see upstream",
                "MobileCLIP, Vasu et al., 2024; github.com/apple/ml-mobileclip",
                _FIRST,
            ),
            (
                "mobileclip2",
                "open_clip",
                "see upstream",
                "MobileCLIP2, Faghri et al., 2025; github.com/apple/ml-mobileclip",
                _SECOND,
            ),
        )
        for name, (config, preprocess, params, macs) in models.items()
    )
)
