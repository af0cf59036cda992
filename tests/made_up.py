"""Made-up weights and inputs under which a model's output really follows its input.

A freshly initialized image tower barely reacts to its image, so tests on it prove nothing.
`from made_up import fill` works in every test (pyproject puts tests/ on the path).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from parity import detw
from torch import Tensor, nn

HERE = Path(__file__).parent
Module = TypeVar("Module", bound=nn.Module)

Keys = list[tuple[str, tuple[int, ...], str]]


def keys(name: str) -> Keys:
    """Return (key, shape, dtype) of an upstream checkpoint: a file stem of tests/keys."""
    blob = gzip.decompress((HERE / "keys" / f"{name}.json.gz").read_bytes())
    return [(key, tuple(shape), dtype) for key, shape, dtype in json.loads(blob)]


def state_dict(entries: Keys) -> dict[str, Tensor]:
    """Return made-up tensors for the entries; integers are zeros."""
    made = {}
    for key, shape, dtype in entries:
        values = detw.weight(key, shape, dtype)
        made[key] = torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        if values is not None:
            made[key] = torch.from_numpy(values)
    return made


def describe(model: nn.Module) -> Keys:
    """Return (key, shape, dtype) of a model's state dict."""
    return [
        (key, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for key, value in model.state_dict().items()
    ]


def fill(model: Module) -> Module:
    """Give `model` made-up weights by its key names, in place; returns it in eval mode."""
    model.load_state_dict(state_dict(describe(model)))
    return model.eval()


def images(name: str, batch: int = 2, size: int = 256, chans: int = 3) -> Tensor:
    """Return (batch, chans, size, size) images that differ after pooling too."""
    return torch.from_numpy(detw.image(name, batch, size, chans))


def tokens(name: str, batch: int = 2) -> Tensor:
    """Return (batch, 77) int64 token ids; rows are 29 and 77 ids long in turn."""
    return torch.from_numpy(detw.tokens(name, batch))


def parity(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the facts and the arrays of a worked example in tests/parity."""
    facts = json.loads((HERE / "parity" / f"{name}.json").read_text())
    with np.load(HERE / "parity" / f"{name}.npz") as arrays:
        return facts, dict(arrays)


def relative(got: Tensor | np.ndarray, want: Tensor | np.ndarray) -> float:
    """Return max abs difference / max abs."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert a.shape == b.shape, f"{a.shape} against {b.shape}"
    return float(np.abs(a - b).max() / np.abs(b).max())


def relative_difference(got: Tensor, want: Tensor | np.ndarray) -> float:
    """Compare row 0 minus row 1 of each: what the output owes to the input."""
    a, b = np.asarray(got), np.asarray(want)
    return relative(a[0] - a[1], b[0] - b[1])
