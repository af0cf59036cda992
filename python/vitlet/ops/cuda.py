"""The operators on an NVIDIA GPU, for arrays that are there already: see docs/cuda.md.

They take any array with a ``__cuda_array_interface__`` (PyTorch, CuPy, JAX, Numba), run on the
caller's stream, allocate nothing and do not wait, so that a CUDA graph can capture them. For torch
tensors, `out` and `workspace` may be left out and the stream is torch's current one; for other
arrays they must be given. Only a build with ``VITLET_CUDA=ON`` has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from vitlet.errors import MissingDependencyError, ShapeError, UsageError
from vitlet.ops.additive_token_mixer import Layout
from vitlet.ops.cuda_arrays import allocated, current_stream, device_array
from vitlet.ops.shift_linear import Activation, Int8Weight, ShiftWeight

__all__ = [
    "DeviceLinearWeight",
    "additive_token_mixer",
    "additive_token_mixer_workspace",
    "binary_linear_attention",
    "binary_linear_attention_workspace",
    "shift_linear",
    "shift_linear_workspace",
    "unavailable_reason",
]

_FLOAT, _BYTE, _WORD = ("<f4",), ("|u1",), ("<u8", "<i8")


def unavailable_reason() -> str:
    """Return why the kernels cannot run here, or "" if they can."""
    try:
        return "" if _extension().device_count() > 0 else "no CUDA device is visible"
    except MissingDependencyError as error:
        return str(error)


@dataclass(frozen=True, eq=False)
class DeviceLinearWeight:
    """A packed weight in a GPU's memory; `from_host` makes one.

    Attributes:
        panels: uint8, as in `ShiftWeight` or `Int8Weight`.
        scale: float32 (N,).
        inputs: K.
        format: of the panels.
    """

    panels: Any
    scale: Any
    inputs: int
    format: Literal["shift", "wide", "dense"]

    @classmethod
    def from_host(
        cls, weight: ShiftWeight | Int8Weight, put: Callable[[Any], Any]
    ) -> DeviceLinearWeight:
        """Copy a packed weight; ``put`` copies one array: ``lambda a: torch.from_numpy(a).cuda()``.

        Raises:
            ShapeError: the weight is not a packed one.
        """
        if not isinstance(weight, ShiftWeight | Int8Weight):
            raise ShapeError(
                f"[shift_linear] expected a ShiftWeight or Int8Weight, got {type(weight).__name__}"
            )
        name: Literal["shift", "wide", "dense"] = "dense"
        if isinstance(weight, ShiftWeight):
            name = "wide" if weight.wide else "shift"
        return cls(put(weight.panels), put(weight.scale), weight.inputs, name)


def shift_linear_workspace(rows: int, inputs: int) -> int:
    """Return the bytes of workspace that `shift_linear` needs for `rows` rows of `inputs`."""
    return int(_call(_extension().shift_linear_workspace, rows, inputs))


def shift_linear(
    x: Any,
    weight: DeviceLinearWeight,
    bias: Any = None,
    *,
    activation: Activation = "none",
    out: Any = None,
    workspace: Any = None,
    stream: int | None = None,
) -> Any:
    """Multiply by packed weights: ``activation(x @ weight.T + bias)``, rows of x rounded to 8 bits.

    The result has the bits of `vitlet.ops.shift_linear` and `vitlet.ops.int8_linear`.

    Args:
        x: float32 (M, K), contiguous, on the GPU like all that follows.
        weight: (N, K).
        bias: float32 (N,).
        activation: "gelu" (the one with erf, within 4e-7) or "none".
        out: float32 (M, N), no overlap with the others.
        workspace: uint8, `shift_linear_workspace` bytes, 16-byte aligned.
        stream: a ``cudaStream_t`` as an integer.

    Returns:
        `out`.

    Raises:
        ShapeError: an array does not fit or is not on a GPU.
        UsageError: sizes, activation or alignment do not fit, or CUDA refuses the launch.
        MissingDependencyError: this build has no CUDA kernels.
    """
    op = "[shift_linear]"
    if not isinstance(weight, DeviceLinearWeight):
        raise ShapeError(f"{op} expected a DeviceLinearWeight, got {type(weight).__name__}")
    extension = _extension()
    columns = device_array(f"{op} scale", weight.scale, _FLOAT, (None,))
    rows = device_array(f"{op} x", x, _FLOAT, (None, weight.inputs))
    m, n = rows.shape[0], columns.size
    panels = device_array(f"{op} panels", weight.panels, _BYTE, (_panels_size(weight, n),))
    shift = 0 if bias is None else device_array(f"{op} bias", bias, _FLOAT, (n,)).address
    out = allocated(f"{op} out", out, x, (m, n), "float32", stream)
    to = device_array(f"{op} out", out, _FLOAT, (m, n), written=True)
    size = shift_linear_workspace(m, weight.inputs)
    workspace = allocated(f"{op} workspace", workspace, x, (size,), "uint8", stream)
    space = _space(op, workspace, size)
    _call(
        extension.shift_linear,
        *(rows.address, m, weight.inputs, panels.address, columns.address, n, shift),
        *(to.address, space, weight.format, activation, current_stream(stream, x)),
    )
    return out


def binary_linear_attention_workspace(
    batch: int, heads: int, tokens: int, dim: int, values: int
) -> int:
    """Return the bytes of workspace that `binary_linear_attention` needs."""
    extension = _extension()
    return int(
        _call(extension.binary_linear_attention_workspace, batch, heads, tokens, dim, values)
    )


def binary_linear_attention(
    q: Any,
    k: Any,
    v: Any,
    dim: int,
    *,
    signed: bool = False,
    taps: Any = None,
    out: Any = None,
    workspace: Any = None,
    stream: int | None = None,
) -> Any:
    """Compute ``Q (K^T V)`` per head: `vitlet.ops.binary_linear_attention` with ``exact=True``.

    Args:
        q: uint64 or int64 (B, H, N, ceil(dim / 64)): the words of `vitlet.ops.pack_bits`.
        k: the same for the keys.
        v: float32 (B, H, N, Dv), contiguous.
        dim: bits in a row, 1 to 128.
        signed: a bit 0 stands for -1. Otherwise it stands for 0.
        taps: float32 (H, 9): ShiftAddViT's whole output, see `vitlet.ops.binary_linear_attention`.
        out: float32 of v's shape, no overlap with the others.
        workspace: uint8, `binary_linear_attention_workspace` bytes, 16-byte aligned.
        stream: a ``cudaStream_t`` as an integer.

    Returns:
        `out`.

    Raises:
        ShapeError: an array does not fit or is not on a GPU.
        UsageError: `dim`, sizes or alignment do not fit, or CUDA refuses the launch.
        MissingDependencyError: this build has no CUDA kernels.
    """
    op = "[binary_linear_attention]"
    extension = _extension()
    from_v = device_array(f"{op} v", v, _FLOAT, (None, None, None, None))
    b, h, n, values = from_v.shape
    size = binary_linear_attention_workspace(b, h, n, dim, values)
    words = (b, h, n, -(-dim // 64))
    queries = device_array(f"{op} q", q, _WORD, words)
    keys = device_array(f"{op} k", k, _WORD, words)
    filters = 0 if taps is None else device_array(f"{op} taps", taps, _FLOAT, (h, 9)).address
    out = allocated(f"{op} out", out, v, from_v.shape, "float32", stream)
    to = device_array(f"{op} out", out, _FLOAT, from_v.shape, written=True)
    workspace = allocated(f"{op} workspace", workspace, v, (size,), "uint8", stream)
    space = _space(op, workspace, size)
    _call(
        extension.binary_linear_attention,
        *(queries.address, keys.address, from_v.address, b, h, n, dim, values, bool(signed)),
        *(filters, to.address, space, current_stream(stream, v)),
    )
    return out


def additive_token_mixer_workspace(batch: int, channels: int, height: int, width: int) -> int:
    """Return the bytes of workspace that `additive_token_mixer` needs."""
    extension = _extension()
    return int(_call(extension.additive_token_mixer_workspace, batch, channels, height, width))


def additive_token_mixer(
    x: Any,
    packed: Any,
    *,
    layout: Layout = "nchw",
    out: Any = None,
    workspace: Any = None,
    stream: int | None = None,
) -> Any:
    """Mix the tokens of a batch of maps in float32: see `vitlet.ops.additive_token_mixer`.

    Args:
        x: float32 (B, C, H, W), or (B, H, W, C) with ``layout="nhwc"``, contiguous.
        packed: float32, a GPU copy of ``MixerWeights.packed("fp32")``.
        layout: of x and of the result.
        out: float32 of x's shape, no overlap with the others.
        workspace: uint8, `additive_token_mixer_workspace` bytes, 16-byte aligned.
        stream: a ``cudaStream_t`` as an integer.

    Returns:
        `out`.

    Raises:
        ShapeError: an array does not fit or is not on a GPU.
        UsageError: the layout, sizes or alignment do not fit, or CUDA refuses the launch.
        MissingDependencyError: this build has no CUDA kernels.
    """
    op = "[additive_token_mixer]"
    extension = _extension()
    if layout not in ("nchw", "nhwc"):
        raise UsageError(f'{op} expected layout "nchw" or "nhwc", got {layout!r}')
    maps = device_array(f"{op} x", x, _FLOAT, (None, None, None, None))
    b, c, h, w = (maps.shape[i] for i in ((0, 1, 2, 3) if layout == "nchw" else (0, 3, 1, 2)))
    weights = device_array(f"{op} packed", packed, _FLOAT, (_call(extension.packed_mixer_size, c),))
    out = allocated(f"{op} out", out, x, maps.shape, "float32", stream)
    to = device_array(f"{op} out", out, _FLOAT, maps.shape, written=True)
    size = additive_token_mixer_workspace(b, c, h, w)
    workspace = allocated(f"{op} workspace", workspace, x, (size,), "uint8", stream)
    space = _space(op, workspace, size)
    _call(
        extension.additive_token_mixer,
        *(maps.address, b, c, h, w, weights.address, to.address, space, layout),
        current_stream(stream, x),
    )
    return out


def _extension() -> ModuleType:
    if TYPE_CHECKING:
        from vitlet import _cuda
    else:
        try:
            from vitlet import _cuda
        except ImportError as error:
            raise MissingDependencyError(
                "vitlet was built without CUDA kernels: install it from source with "
                f"pip install . -Ccmake.define.VITLET_CUDA=ON ({error})"
            ) from None
    return _cuda


def _panels_size(weight: DeviceLinearWeight, outputs: int) -> int:
    unit, per_output = (32, 2) if weight.format == "wide" else (64, 1)
    columns = -(-outputs // unit) * unit * per_output
    bytes_of_eight = 8 if weight.format == "dense" else 4
    return columns * -(-weight.inputs // 8) * bytes_of_eight


def _space(op: str, workspace: Any, size: int) -> int:
    space = device_array(f"{op} workspace", workspace, _BYTE, (None,), written=True)
    if space.size < size:
        raise ShapeError(f"{op} expected a workspace of {size} bytes, got {space.size}")
    return space.address


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except TypeError:  # pybind11's text lists C++ signatures over many lines
        raise UsageError(f"[{function.__name__}] expected non-negative sizes and names") from None
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None
