"""What layers cost on one machine: measured once, kept beside the artefact, used again on request.

```json
{"schema": 1, "processor": "AMD EPYC 7R13", "isa": "avx2", "onnxruntime": "1.32.0", "threads": 1,
 "layers": {"Linear 4096x64x192 bias gelu": {"plain": 2010.0, "fp32": 1530.0}},
 "transposes": {"64x64x192": 310.0},
 "files": {"image": {"plain": 71700.0, "layers": 58900.0}},
 "chosen": {"image": {"Linear 4096x64x192 bias gelu": {"fp32": 2}}}}
```

All times are microseconds at batch 1 on one thread. "files" are whole graphs: without and
with the layers that were chosen; the faster is written. "chosen" counts the layers of each kind by
what computes them; nothing reads it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vitlet._extras import require
from vitlet.errors import UnsupportedError, UsageError
from vitlet.runtime.manifest import MANIFEST

SCHEMA = 1
TableSource: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]
_PARTS = ("layers", "transposes", "files", "chosen")


@dataclass
class Table:
    """Times of layers; see the module.

    Attributes:
        facts: what was measured on what.
        layers: a layer's key -> way -> microseconds.
        transposes: "HxWxC" -> microseconds.
        files: graph -> "plain" and "layers" -> microseconds.
        chosen: graph -> a layer's key -> way -> number of layers.
        library: measures with this `libvitlet_ort` what is missing; None refuses instead.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    transposes: dict[str, float] = field(default_factory=dict)
    files: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    library: Path | None = None

    def layer(
        self, key: str, ways: Iterable[str], measure: Callable[[Path], dict[str, float]]
    ) -> dict[str, float]:
        """Return a layer's times, by way; those that are not there are measured.

        Raises:
            UsageError: the table was given and does not have them.
        """
        known = self.layers.get(key, {})
        if any(way not in known for way in ways):
            if self.library is None:
                raise UsageError(
                    f"the accelerate table has no times of {key!r} ({', '.join(ways)}): it is of "
                    "another model or precision; export without a table to measure here"
                )
            known = {**known, **_rounded(measure(self.library))}
            self.layers[key] = known
        return known

    def transpose(self, shape: str, measure: Callable[[Path], float]) -> float:
        """Return the time of turning an image of "HxWxC"; see `layer`."""
        if shape not in self.transposes:
            if self.library is None:
                raise UsageError(
                    f"the accelerate table has no time for turning {shape}: it is of another "
                    "model; export without a table to measure here"
                )
            self.transposes.update(_rounded({shape: measure(self.library)}))
        return self.transposes[shape]

    def file(self, graph: str, measure: Callable[[Path], dict[str, float]]) -> dict[str, float]:
        """Return the times of the whole graph; nothing if the table was given without them."""
        if graph not in self.files and self.library is not None:
            self.files[graph] = _rounded(measure(self.library))
        return self.files.get(graph, {})

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {"schema": SCHEMA, **self.facts, **{part: getattr(self, part) for part in _PARTS}}


def measuring_table() -> Table:
    """Return an empty table that measures on this machine.

    Raises:
        UnsupportedError: the kernels cannot run here.
    """
    from vitlet.ops.native import extension
    from vitlet.runtime.accelerate import usable_library

    library, reason = usable_library()
    if library is None:
        raise UnsupportedError(
            f"accelerate measures layers in vitlet's kernels, which cannot run here ({reason}): "
            "give accelerate_table, a bundle that was exported where they do"
        )
    runtime = require("onnxruntime", extra="runtime", why="measure layers for accelerate")
    facts = {
        "processor": _processor(),
        "isa": extension.active_isa(),
        "onnxruntime": str(runtime.__version__),
        "threads": 1,
    }
    return Table(facts, library=library)


def read_table(given: TableSource) -> Table:
    """Read a table: a bundle, a JSON file of one, or the dictionary itself.

    Raises:
        UsageError: there is none, or it is no table.
    """
    if isinstance(given, Mapping):
        return _table(given, "the accelerate table")
    path = Path(given)
    place = path / MANIFEST if path.is_dir() else path
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read an accelerate table from {path}: {error}") from None
    if not isinstance(data, dict) or "artifacts" not in data:
        return _table(data, str(path))
    found = [
        artifact["details"]["accelerate_table"]
        for artifact in data["artifacts"]
        if "accelerate_table" in artifact.get("details", {})
    ]
    if not found:
        raise UsageError(f"{path} was exported without accelerate: it holds no table of times")
    merged = _table(found[0], str(path))
    for other in found[1:]:
        more = _table(other, str(path))
        for part in _PARTS:
            getattr(merged, part).update(getattr(more, part))
    return merged


def _table(data: Any, name: str) -> Table:
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise UsageError(f"{name} is not an accelerate table of schema {SCHEMA}")
    parts = {part: data.get(part, {}) for part in _PARTS}
    if not all(isinstance(part, Mapping) for part in parts.values()) or not all(
        _is_time(time)
        for times in (*parts["layers"].values(), *parts["files"].values(), parts["transposes"])
        for time in (times.values() if isinstance(times, Mapping) else [None])
    ):
        raise UsageError(f"{name} is damaged: times must be numbers of microseconds")
    facts = {key: value for key, value in data.items() if key not in ("schema", *_PARTS)}
    copied = json.loads(json.dumps(parts))
    return Table(facts, **copied)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def _rounded(times: Mapping[str, float]) -> dict[str, float]:
    return {way: round(time, 1) for way, time in times.items()}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
