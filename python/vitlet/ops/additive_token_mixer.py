"""CAS-ViT's whole token mixer in one call: https://arxiv.org/abs/2408.03703.

``q, k, v = qkv(x)``; ``y = proj(dwc(gate(q) + gate(k)) * v)``. A gate multiplies each position by a
sigmoid of its 3x3 neighbourhood in all channels, then each channel by a sigmoid of all channel
means; ``dwc`` and ``proj`` are depthwise 3x3 convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError
from vitlet.ops.native import extension

Precision = Literal["fp32", "bf16", "int8", "shift"]
Layout = Literal["nchw", "nhwc"]
Array = NDArray[np.float32]

__all__ = ["Layout", "MixerWeights", "Precision", "additive_token_mixer"]


@dataclass(frozen=True, eq=False)
class MixerGate:
    """One gate's weights: taps (C, 3, 3) and bias (C,), point (C,), channel (C out, C in)."""

    taps: Array
    bias: Array
    point: Array
    channel: Array


@dataclass(frozen=True, eq=False)
class MixerWeights:
    """The mixer's weights for `additive_token_mixer`, batch norms folded in.

    qkv (3C, C) and qkv_bias (3C,); two gates; dwc and proj (C, 3, 3) with biases (C,). They are
    put in the kernels' order once for each precision, when it is first used; the arrays must not
    be changed after that.
    """

    qkv: Array
    qkv_bias: Array
    gate_q: MixerGate
    gate_k: MixerGate
    dwc: Array
    dwc_bias: Array
    proj: Array
    proj_bias: Array
    _packed: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    @property
    def dim(self) -> int:
        """Number of channels C."""
        return int(self.qkv.shape[-1])

    @classmethod
    def from_module(cls, module: Any) -> MixerWeights:
        """Take the weights of a `vitlet.layers.AdditiveTokenMixer`, reparameterized or not.

        Batch norms are folded with their running statistics, as in eval mode.

        Raises:
            ShapeError: the module is not such a mixer.
        """
        try:
            qkv = _array(module.qkv.weight)
            if qkv.ndim != 4 or qkv.shape[2:] != (1, 1):
                raise ShapeError(
                    f"[additive_token_mixer] expected a 1x1 convolution qkv, got {qkv.shape}"
                )
            return cls(
                qkv=qkv[:, :, 0, 0],
                qkv_bias=_bias(module.qkv),
                gate_q=_gate(module.oper_q),
                gate_k=_gate(module.oper_k),
                dwc=_depthwise(module.dwc),
                dwc_bias=_bias(module.dwc),
                proj=_depthwise(module.proj),
                proj_bias=_bias(module.proj),
            )
        except (AttributeError, TypeError, IndexError) as error:
            raise ShapeError(
                "[additive_token_mixer] expected a vitlet.layers.AdditiveTokenMixer, got "
                f"{type(module).__name__} ({error})"
            ) from None

    def packed(self, precision: Precision = "fp32") -> Array:
        """Return the weights in the kernels' order, the same for every instruction set.

        "int8" and "shift" round qkv as `vitlet.ops.pack_int8_weight` and `pack_shift_weight` do.

        Raises:
            ShapeError: the arrays do not fit together, or qkv is to be rounded to 8 bits and not
                finite.
        """
        if precision not in self._packed:
            try:
                self._packed[precision] = extension.pack_token_mixer(
                    _float32(self.qkv),
                    _float32(self.qkv_bias),
                    _parts(self.gate_q),
                    _parts(self.gate_k),
                    _float32(self.dwc),
                    _float32(self.dwc_bias),
                    _float32(self.proj),
                    _float32(self.proj_bias),
                    precision=precision,
                )
            except (TypeError, ValueError) as error:
                raise _shape_error(error) from None
        return self._packed[precision]

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_packed": {}}


def additive_token_mixer(
    x: Array,
    weights: MixerWeights,
    *,
    precision: Precision = "fp32",
    layout: Layout = "nchw",
    threads: int = 1,
) -> Array:
    """Mix the tokens of a batch of maps.

    Args:
        x: float32 (B, C, H, W), or (B, H, W, C) with ``layout="nhwc"``; any sizes, any strides
            (a strided array is copied).
        weights: of C channels.
        precision: "bf16" rounds x and the q, k, v weights to bfloat16 before they are multiplied;
            sums and all the rest are float32 (about 2e-3 of the largest output). "int8" and "shift"
            round each pixel of x to 8 bits by itself, and the weights of each output to 8 bits or
            to signed powers of two: about 1e-2 and, unless the weights are such powers, 2e-1.
        layout: of x and of the result.
        threads: processor cores to use. The result does not depend on it.

    Returns:
        float32 of x's shape. A NaN or infinity makes its own image's outputs NaN or infinite where
        the formula does, and no other image's.

    Raises:
        ShapeError: x or an option does not fit.
    """
    try:
        return extension.additive_token_mixer(
            np.ascontiguousarray(x) if isinstance(x, np.ndarray) and x.ndim else x,
            weights.packed(precision),
            weights.dim,
            precision=precision,
            layout=layout,
            threads=threads,
        )
    except (TypeError, ValueError) as error:
        raise _shape_error(error) from None


def _array(tensor: Any) -> Array:
    """A tensor's numbers, as float32."""
    return np.array(tensor.detach().float().cpu().numpy(), np.float32)


def _bias(conv: Any) -> Array:
    if conv.bias is None:
        return np.zeros(conv.weight.shape[0], np.float32)
    return _array(conv.bias)


def _depthwise(conv: Any) -> Array:
    weight = _array(conv.weight)
    if weight.ndim != 4 or weight.shape[1:] != (1, 3, 3):
        raise ShapeError(
            f"[additive_token_mixer] expected depthwise weights (C, 1, 3, 3), got {weight.shape}"
        )
    return weight[:, 0]


def _gate(oper: Any) -> MixerGate:
    """A `Sequential(SpatialGate, ChannelGate)`, with or without its BatchNorm."""
    spatial, channel = oper[0].block, oper[1].block
    taps, bias = _depthwise(spatial[0]), _bias(spatial[0])
    if hasattr(spatial[1], "running_var"):
        norm = spatial[1]
        scale = np.ones(len(bias)) if norm.weight is None else _array(norm.weight).astype(float)
        shift = np.zeros(len(bias)) if norm.bias is None else _array(norm.bias).astype(float)
        scale /= np.sqrt(_array(norm.running_var).astype(float) + norm.eps)
        bias = ((bias - _array(norm.running_mean)) * scale + shift).astype(np.float32)
        taps = (taps * scale[:, None, None]).astype(np.float32)
    point = _array(spatial[-2].weight)
    return MixerGate(taps, bias, point.reshape(-1), _array(channel[1].weight)[:, :, 0, 0])


def _parts(gate: MixerGate) -> list[Array]:
    return [_float32(part) for part in (gate.taps, gate.bias, gate.point, gate.channel)]


def _float32(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)


def _shape_error(error: Exception) -> ShapeError:
    if isinstance(error, TypeError):  # pybind11's text lists C++ signatures over many lines
        return ShapeError(
            "[additive_token_mixer] expected float32 arrays, precision and layout as text and "
            "threads as an integer"
        )
    return ShapeError(str(error))
