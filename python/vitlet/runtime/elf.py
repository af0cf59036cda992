"""Reads what a compiled graph is, from its ELF file, without loading a byte of its code.

Loading a library for another processor fails with a riddle; loading one for a newer processor of
the same family kills the process with SIGILL at the first instruction that this one lacks; and
a truncated one can die of SIGBUS. `vitlet export` therefore leaves a record, as JSON, in a section
``.vitlet`` that is never mapped into memory:

```json
{"schema": 1, "triple": "x86_64-linux-gnu", "cpu": "znver4", "cpu_features": ["avx2", "fma"],
 "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 3, 256, 256]}], "outputs": [...]}
```
"""

from __future__ import annotations

import json
import os
import platform
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlet.errors import CorruptInputError, UnsupportedError
from vitlet.runtime.manifest import TensorSpec

SECTION = ".vitlet"
RECORD_SCHEMA = 1
_RECORD_LIMIT = 1 << 20  # bytes
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_SHARED_OBJECT = 3


@dataclass(frozen=True)
class Record:
    """What a compiled graph needs and takes.

    Attributes:
        machine: as `platform.machine` spells it: "x86_64", "aarch64".
        triple: what it was compiled for.
        cpu: LLVM's name of the processor it was compiled for.
        cpu_features: instruction sets that its code may use, as /proc/cpuinfo spells them.
        inputs: what the graph takes.
        outputs: what it gives.
    """

    machine: str
    triple: str
    cpu: str
    cpu_features: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read the record of a compiled graph.

    Raises:
        CorruptInputError: not a 64-bit ELF library, truncated, or without a record of ours.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            machine, tables = _header(path, head, size)
            text = _section(path, file, tables, size)
    except OSError as error:
        raise CorruptInputError(f"cannot read {path}: {error.strerror}") from error
    try:
        data = json.loads(text)
        if data["schema"] != RECORD_SCHEMA:
            raise ValueError(f"its record has schema {data['schema']!r}")
        return Record(
            machine,
            str(data["triple"]),
            str(data["cpu"]),
            tuple(str(feature) for feature in data["cpu_features"]),
            _specs(data["inputs"]),
            _specs(data["outputs"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(path, f"its record cannot be read: {error}") from None


def check_runs_here(path: Path, record: Record) -> None:
    """Refuse a library for another processor, before it is loaded.

    Raises:
        UnsupportedError: names the processor or the instruction sets that are missing.
    """
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    if record.machine != here:
        raise UnsupportedError(
            f"{path.name} was compiled for {record.machine} ({record.triple}), this machine is "
            f"{here}: export it for this one, or run it on {record.machine}"
        )
    flags = cpu_flags()
    missing = [feature for feature in record.cpu_features if feature not in flags]
    if flags and missing:
        raise UnsupportedError(
            f"{path.name} was compiled for the processor {record.cpu} and uses "
            f"{', '.join(missing)}, which this processor does not have: export it here, or for "
            "an older processor"
        )


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of this processor as /proc/cpuinfo names them; empty if unknown.

    Raises nothing: a system without /proc/cpuinfo simply has no list.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _header(path: Path, head: bytes, size: int) -> tuple[str, tuple[int, int, int]]:
    """Return the machine and the section table's (offset, count, index of the names)."""
    if len(head) < 64 or head[:4] != b"\x7fELF":
        raise _corrupt(path, "it is not an ELF file")
    if head[4] != 2 or head[5] != 1:
        raise _corrupt(path, "it is not a 64-bit little-endian ELF file")
    kind, number = struct.unpack_from("<HH", head, 16)
    if kind != _SHARED_OBJECT:
        raise _corrupt(path, "it is not a shared library")
    (offset,) = struct.unpack_from("<Q", head, 40)
    entry, count, names = struct.unpack_from("<HHH", head, 58)
    # The section table is the last thing in the file: a file that was cut has lost it.
    if entry != 64 or count < 1 or names >= count or offset + entry * count > size:
        raise _corrupt(path, "its section table does not fit: it was probably truncated")
    return _MACHINES.get(number, f"machine {number}"), (offset, count, names)


def _section(path: Path, file: Any, tables: tuple[int, int, int], size: int) -> bytes:
    offset, count, names_index = tables
    file.seek(offset)
    rows = list(struct.iter_unpack("<IIQQQQIIQQ", file.read(64 * count)))

    def read(row: tuple[int, ...]) -> bytes:
        begin, length = row[4], row[5]
        if length > _RECORD_LIMIT or begin + length > size:
            raise _corrupt(path, "a section lies outside the file")
        file.seek(begin)
        content: bytes = file.read(length)
        return content

    names = read(rows[names_index])
    for row in rows:
        name = names[row[0] : names.find(b"\0", row[0])]
        if name == SECTION.encode():
            return read(row)
    raise _corrupt(path, f"it has no section {SECTION}: it was not made by `vitlet export`")


def _specs(entries: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(str(e["name"]), str(e["dtype"]), tuple(e["shape"])) for e in entries)


def _corrupt(path: Path, why: str) -> CorruptInputError:
    return CorruptInputError(f"{path} is not a sound compiled graph: {why}")
