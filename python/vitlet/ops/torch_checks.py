"""What the torch operators ask of their tensors, said in one way."""

from __future__ import annotations

import torch
from torch import Tensor

from vitlet.errors import ShapeError, UnsupportedError

__all__ = ["check_floats", "check_shape", "require_cpu", "straight_through"]

FLOATS = (torch.float32, torch.float64)


def check_floats(op: str, **tensors: Tensor | None) -> None:
    """Ask for one dtype, float32 or float64, and one device of all tensors; None is left out.

    Raises:
        ShapeError: a tensor has another dtype or device than the first one.
    """
    (first, like), *others = [(name, t) for name, t in tensors.items() if t is not None]
    if like.dtype not in FLOATS:
        raise ShapeError(f"[{op}] expected {first} of float32 or float64, got {like.dtype}")
    for name, tensor in others:
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise ShapeError(
                f"[{op}] expected {name} of {like.dtype} on {like.device} like {first}, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def check_shape(op: str, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    """Ask for one shape; None is left out.

    Raises:
        ShapeError: the tensor has another one.
    """
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ShapeError(f"[{op}] expected {name} of shape {shape}, got {tuple(tensor.shape)}")


def require_cpu(op: str, tensor: Tensor) -> None:
    """Refuse a device that has no kernel.

    Raises:
        UnsupportedError: the tensor is not on the processor.
    """
    if tensor.device.type != "cpu":
        raise UnsupportedError(
            f"[{op}] expected tensors on the cpu, which has a kernel, got {tensor.device}; "
            "move them with .cpu()"
        )


def straight_through(smooth: Tensor, hard: Tensor) -> Tensor:
    """Return the values of `hard` with the derivative of `smooth`, where one can be asked for."""
    if not torch.is_grad_enabled():
        return hard
    return smooth + (hard - smooth).detach()
