from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def active_isa() -> str: ...
def supported_isas() -> list[str]: ...
def pack_bits(x: NDArray[Any], threshold: NDArray[Any], *, isa: str = "") -> NDArray[np.uint64]: ...
def binary_linear_attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    bits: int,
    *,
    signed: bool = False,
    exact: bool = False,
    taps: NDArray[Any] | None = None,
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
def hamming_attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    bits: int,
    *,
    scale: float,
    signed: bool = True,
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
def resize_normalize(
    image: NDArray[Any],
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    filter: str = "bilinear",
    isa: str = "",
) -> NDArray[np.float32]: ...
def resize_crop(
    image: NDArray[Any],
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    *,
    filter: str = "bilinear",
    isa: str = "",
) -> NDArray[np.uint8]: ...
def shift_linear(
    x: NDArray[Any],
    panels: NDArray[Any],
    sums: NDArray[Any],
    scale: NDArray[Any],
    *,
    bias: NDArray[Any] | None = None,
    residual: NDArray[Any] | None = None,
    format: str = "shift",
    activation: str = "none",
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
def pack_linear_weight(weight: NDArray[Any], *, precision: str = "fp32") -> NDArray[np.uint8]: ...
def float_linear(
    x: NDArray[Any],
    panels: NDArray[Any],
    outputs: int,
    *,
    scale: NDArray[Any] | None = None,
    bias: NDArray[Any] | None = None,
    residual: NDArray[Any] | None = None,
    format: str = "fp32",
    activation: str = "none",
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
def pack_token_mixer(
    qkv: NDArray[np.float32],
    qkv_bias: NDArray[np.float32],
    gate_q: Sequence[NDArray[np.float32]],
    gate_k: Sequence[NDArray[np.float32]],
    dwc: NDArray[np.float32],
    dwc_bias: NDArray[np.float32],
    proj: NDArray[np.float32],
    proj_bias: NDArray[np.float32],
    *,
    precision: str = "fp32",
) -> NDArray[np.float32]: ...
def additive_token_mixer(
    x: NDArray[Any],
    packed: NDArray[np.float32],
    channels: int,
    *,
    precision: str = "fp32",
    layout: str = "nchw",
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
def pack_depthwise(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]: ...
def depthwise_conv2d(
    x: NDArray[Any],
    packed: NDArray[np.float32],
    multiplier: int,
    kernel: tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    activation: str = "none",
    residual: NDArray[Any] | None = None,
    layout: str = "nhwc",
    threads: int = 1,
    isa: str = "",
) -> NDArray[np.float32]: ...
