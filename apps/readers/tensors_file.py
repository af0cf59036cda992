"""Reads a checkpoint: a .safetensors file, or a .pt that holds tensors and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitlet.apps.readers.contents import Contents
from vitlet.apps.readers.values import ValueScan
from vitlet.apps.units import count

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read(path: Path) -> Contents:
    """Return the tensors' number, dtypes and sizes, and what is wrong with their values.

    Raises:
        CorruptInputError: truncated, damaged, or a pickle that holds more than tensors.
        MissingDependencyError: torch is not installed (.pt files only).
    """
    safe = path.suffix == ".safetensors"
    contents = Contents(path, "safetensors" if safe else "torch checkpoint", path.stat().st_size)
    scan = ValueScan()
    names: list[str] = []
    numbers = 0
    for name, array, dtype in _tensors(path, safe):
        names.append(name)
        numbers += array.size
        contents.add_tensor(dtype, array.nbytes)
        scan.look(name, array)
    contents.facts = {
        "tensors": len(names),
        "numbers": count(numbers),
        "groups": ", ".join(_groups(names)),
    }
    scan.report(contents)
    if any(name.endswith("running_var") for name in names):
        contents.note("has BatchNorm statistics: a training-time form, folded by `vitlet export`")
    if not safe:
        contents.note("a pickle inside; read with weights_only, prefer .safetensors")
    return contents


def _tensors(path: Path, safe: bool) -> Iterable[tuple[str, Any, str]]:
    if safe:
        from vitlet.runtime.safetensors import load_file

        return [(name, array, str(array.dtype)) for name, array in load_file(path).items()]
    from vitlet.checkpoint import load_state_dict

    return [
        (name, _numpy(tensor), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in load_state_dict(path).items()
    ]


def _numpy(tensor: Any) -> Any:
    # numpy has no bfloat16; the value scan needs numbers, not the exact type.
    is_float = tensor.is_floating_point()
    return (tensor.float() if is_float and tensor.element_size() == 2 else tensor).numpy()


def _groups(names: list[str]) -> list[str]:
    """Return the first parts of the names, in order, with how many tensors each has."""
    found: dict[str, int] = {}
    for name in names:
        first = name.split(".")[0]
        found[first] = found.get(first, 0) + 1
    shown = [f"{first} ({number})" for first, number in list(found.items())[:8]]
    return [*shown, "..."] if len(found) > 8 else shown
