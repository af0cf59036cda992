"""What a model expects of an image, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vitlet.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocess:
    """From an image file to a float32 (B, C, H, W) tensor: resize, centre crop, scale, normalize.

    As JSON: ``{"size": [256, 256], "resize": "shortest", "resize_to": 256, "interpolation":
    "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "mode": "RGB"}``.

    Attributes:
        size: (H, W) of the model's input, in pixels.
        resize: "shortest" keeps the aspect ratio and crops the centre; "squash" does not.
        resize_to: length of the shorter side before the crop, in pixels ("shortest" only).
        interpolation: "bilinear" or "bicubic", both antialiased as Pillow does it.
        mean: per channel, subtracted from values in [0, 1].
        std: per channel, divided by.
        mode: "RGB" (3 channels) or "L" (1, grey).
    """

    size: tuple[int, int]
    resize: Literal["shortest", "squash"] = "shortest"
    resize_to: int = 0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: Literal["RGB", "L"] = "RGB"

    def __post_init__(self) -> None:
        if self.resize not in ("shortest", "squash"):
            raise UsageError(f'resize must be "shortest" or "squash", got {self.resize!r}')
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UsageError(
                f'interpolation must be "bilinear" or "bicubic", got {self.interpolation!r}'
            )
        if self.mode not in ("RGB", "L"):
            raise UsageError(f'mode must be "RGB" or "L", got {self.mode!r}')
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"size must be (height, width), both positive, got {self.size!r}")
        if self.resize == "shortest" and self.resize_to < max(self.size):
            raise UsageError(
                f"resize_to must be at least the crop {max(self.size)}, got {self.resize_to}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UsageError(
                    f"{name} must have {self.channels} values for {self.mode}, got {values}"
                )
        if min(self.std) <= 0:
            raise UsageError(f"std must be positive, got {self.std}")

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return 3 if self.mode == "RGB" else 1

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """Read back what `to_json` wrote.

        Raises:
            UsageError: a field is missing, unknown or has a senseless value.
        """
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        try:
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"not a preprocessing description: {error}") from None
