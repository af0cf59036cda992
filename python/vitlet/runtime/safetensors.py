"""The safetensors file format in numpy alone, for devices that have nothing else.

A file is the header's length (8 bytes, little endian), a JSON header
``{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {...}}``, and
the data (format: huggingface.co/docs/safetensors). Reading is strict: the tensors must cover
the data exactly, without holes or overlaps, and a name may come only once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import CorruptInputError, StorageError, UsageError

HEADER_LIMIT = 100_000_000  # bytes; the reference implementation's limit

_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}


def load_file(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read every tensor of a file, in the order of the data.

    BF16, which numpy does not have, is widened to float32 (exactly). The arrays share one buffer.

    Raises:
        CorruptInputError: not a safetensors file, truncated, or one whose header makes no sense.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length < 2 or length > size - 8:
            raise _corrupt(path, f"its header of {length} bytes does not fit the {size} bytes")
        if length > HEADER_LIMIT:
            raise _corrupt(path, f"its header has {length} bytes, the limit is {HEADER_LIMIT}")
        entries = _entries(path, _parse(path, file.read(length)), size - 8 - length)
        data = np.fromfile(file, dtype=np.uint8)
    if data.size != size - 8 - length:
        raise _corrupt(path, "it changed while it was read")
    return {name: _tensor(data, *entry) for name, entry in entries.items()}


def save_file(tensors: Mapping[str, NDArray[Any]], path: str | os.PathLike[str]) -> None:
    """Write tensors so that equal tensors give equal bytes, whatever the order of the mapping.

    Raises:
        UsageError: a dtype that the format does not have, or the name ``__metadata__``.
        StorageError: the disk is full or the folder cannot be written.
    """
    header: dict[str, Any] = {}
    chunks: list[NDArray[Any]] = []
    offset = 0
    # Wide types first, so that every tensor starts at a multiple of its own size.
    for name in sorted(tensors, key=lambda n: (-np.asarray(tensors[n]).dtype.itemsize, n)):
        array = np.asarray(tensors[name])
        dtype = _NAMES.get(array.dtype.newbyteorder("<"))
        if dtype is None or name == "__metadata__":
            raise UsageError(f"safetensors cannot hold {name!r} of dtype {array.dtype}")
        # ascontiguousarray would make a 0-d array 1-d; the header has the true shape.
        chunks.append(np.ascontiguousarray(array, dtype=_DTYPES[dtype]))
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        with Path(path).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for chunk in chunks:
                chunk.tofile(file)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a name comes twice")
        return made

    try:
        if not text.startswith(b"{"):
            raise ValueError("it does not start with {")
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON of the right kind: {error}") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _corrupt(path, "its metadata is not text")
    return header


def _entries(
    path: Path, header: dict[str, Any], size: int
) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
    """Check the header against the data's size; return name -> (dtype, shape, begin, end)."""
    entries = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _corrupt(path, f"{name!r} has not exactly dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise _corrupt(path, f"{name!r} has the unknown dtype {dtype!r}")
        if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            raise _corrupt(path, f"{name!r} has a shape or offsets that are not natural numbers")
        if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != offsets[1] - offsets[0]:
            raise _corrupt(path, f"{name!r} {dtype} {shape} does not fill the bytes {offsets}")
        entries[name] = (dtype, tuple(shape), offsets[0], offsets[1])
    ordered = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    covered = 0
    for name, (_, _, begin, end) in ordered.items():
        if begin != covered:
            raise _corrupt(path, f"{name!r} starts at byte {begin}, expected {covered}")
        covered = end
    if covered != size:
        raise _corrupt(path, f"its tensors cover {covered} bytes of {size}")
    return ordered


def _naturals(value: Any) -> bool:
    # bool is an int in Python, and a float such as 2.0 must not pass either.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _tensor(
    data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...], begin: int, end: int
) -> NDArray[Any]:
    raw = data[begin:end]
    code = np.dtype(_DTYPES[dtype])
    if raw.ctypes.data % code.itemsize:
        raw = raw.copy()
    array: NDArray[Any] = raw.view(code)
    if dtype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    if sys.byteorder == "big":
        array = array.astype(array.dtype.newbyteorder("="))
    return array.reshape(shape)


def _corrupt(path: Path, why: str) -> CorruptInputError:
    return CorruptInputError(f"{path} is not a sound safetensors file: {why}")
