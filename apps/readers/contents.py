"""What every reader gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitlet.runtime.manifest import TensorSpec


@dataclass(frozen=True)
class Risk:
    """Something in a file that has hurt people: "problem" breaks things, "note" may surprise."""

    level: Literal["problem", "note"]
    text: str


@dataclass
class Contents:
    """What is in a file or bundle.

    Attributes:
        path: what was read.
        format: "ONNX", "Core ML program", "ELF shared library", "safetensors", ...
        bytes: size on disk, in bytes.
        facts: name -> value, to be shown as they are (opset, producer, deployment target).
        inputs: of the graph, where there is one.
        outputs: of the graph.
        ops: operator -> how often.
        custom_ops: operators outside the format's own set.
        dtypes: dtype, or way of compressing it -> [number of stored tensors, their bytes].
        compute: precision that operations compute in ("fp16", "fp32", "integer") -> operator -> how
            often; of a Core ML program.
        layers: a row per stored weight of a Core ML program, the largest first: weight, op that
            uses it, storage, shape, bytes.
        functions: names of a Core ML program's functions.
        states: what a stateful Core ML program keeps between calls.
        placement: what is known to keep operations off the Neural Engine: why, source, ops.
        metadata: what the author wrote into the file.
        risks: what to look at.
        parts: of a bundle: one row per artefact.
    """

    path: Path
    format: str
    bytes: int
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    ops: dict[str, int] = field(default_factory=dict)
    custom_ops: list[str] = field(default_factory=list)
    dtypes: dict[str, list[int]] = field(default_factory=dict)
    compute: dict[str, dict[str, int]] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    states: list[TensorSpec] = field(default_factory=list)
    placement: list[dict[str, Any]] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    risks: list[Risk] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add_tensor(self, dtype: str, count: int) -> None:
        """Count one stored tensor of `count` bytes."""
        entry = self.dtypes.setdefault(dtype, [0, 0])
        entry[0] += 1
        entry[1] += count

    def problem(self, text: str) -> None:
        """Add something that breaks things."""
        self.risks.append(Risk("problem", text))

    def note(self, text: str) -> None:
        """Add something that may surprise."""
        self.risks.append(Risk("note", text))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; operators from the most to the least frequent."""
        return {**asdict(self), "path": str(self.path), "ops": dict(by_count(self.ops))}


def by_count(ops: dict[str, int]) -> list[tuple[str, int]]:
    """Return operators from the most to the least frequent, then by name."""
    return sorted(ops.items(), key=lambda item: (-item[1], item[0]))


def folder_size(path: Path) -> int:
    """Return the bytes of a file, or of all plain files under a folder (links not followed)."""
    if path.is_file():
        return path.stat().st_size
    files = (entry for entry in path.rglob("*") if entry.is_file() and not entry.is_symlink())
    return sum(entry.stat().st_size for entry in files)
