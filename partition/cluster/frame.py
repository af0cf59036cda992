"""The wire format: one fixed header of 128 bytes, then the payload. No pickle, nothing to execute.

| bytes | field | |
| --- | --- | --- |
| 0-3 | magic | `VITF` |
| 4 | version | 1 |
| 5 | kind | request, reply, failure, control |
| 6, 7 | dtype, dimensions | of the payload, a C-contiguous array |
| 8-23 | plan | first 16 bytes of the plan's SHA-256 |
| 24-39 | session, sequence | the request id; no attempt ever uses one twice |
| 40-47 | epoch | of the worker's process that is spoken to, or answers |
| 48-59 | budget, compute, queue | microseconds: left until the deadline; spent (replies) |
| 60-63 | length | of the payload, in bytes |
| 64-87 | shape | six sizes, the unused ones 0 |
| 88-91 | slot, code | which sub-model; why it failed |
| 92-123 | device | name of the answering device, padded with zeros |
| 124-127 | crc | CRC-32 of the payload, then of the header before it |

All numbers are little-endian. The deadline is a time that is left, not a time of day: clocks of
devices differ.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import CorruptInputError, ShapeError, UsageError

MAGIC = b"VITF"
VERSION = 1
PLAN_BYTES = 16
HEADER = struct.Struct("<4sBBBB16sQQQIIII6IHH32s")
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + CRC.size
MAX_PAYLOAD = 32 << 20  # bytes: a batch of 50 float32 images of 224x224
MAX_DIMENSIONS = 6
MAX_BUDGET = 2**32 - 1  # microseconds, 71 minutes
NAME_BYTES = 32

_DTYPES = ("uint8", "int8", "int32", "int64", "float16", "float32", "bool")
_WIRE_DTYPES = tuple(np.dtype(name).newbyteorder("<") for name in _DTYPES)


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    REPLY = 2
    FAILURE = 3
    CONTROL = 4


class Code(IntEnum):
    """Why a request was not answered; 0 in every other frame."""

    NONE = 0
    BUSY = 1  # the queue is full: another device, or later
    EXPIRED = 2  # the deadline passed while it waited
    NOT_READY = 3  # the plan or slot is not loaded here
    REFUSED = 4  # the input does not fit the sub-model
    BROKEN = 5  # the sub-model failed


class FrameError(CorruptInputError):
    """Bytes that are no frame of this version; `reason` is one word, for counting.

    Attributes:
        reason: "short", "magic", "version", "kind", "dtype", "shape", "length", "large", "name"
            or "crc".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Frame:
    """A frame's header; see the module's table.

    Attributes:
        kind: what it is.
        plan: first 16 bytes of the plan's hash.
        session: random number of the sender's process.
        sequence: counts the sender's attempts.
        epoch: random number of the worker's process.
        budget: microseconds left until the deadline when it was sent.
        compute: microseconds of computing.
        queue: microseconds of waiting before that.
        slot: number of the sub-model in the plan.
        code: why it failed.
        device: name of the answering device.
    """

    kind: Kind
    plan: bytes
    session: int
    sequence: int
    epoch: int = 0
    budget: int = 0
    compute: int = 0
    queue: int = 0
    slot: int = 0
    code: Code = Code.NONE
    device: str = ""


@dataclass(frozen=True)
class Body:
    """An array ready to be sent any number of times: its checksum is computed once."""

    dtype: int
    shape: tuple[int, ...]
    content: bytes
    crc: int

    @classmethod
    def of(cls, array: NDArray[np.generic]) -> Body:
        """Prepare an array.

        Raises:
            ShapeError: a dtype, number of dimensions or size that no frame carries.
        """
        if array.dtype.name not in _DTYPES:
            raise ShapeError(f"expected an array of {', '.join(_DTYPES)}, got {array.dtype}")
        if array.ndim > MAX_DIMENSIONS or array.nbytes > MAX_PAYLOAD:
            raise ShapeError(
                f"expected at most {MAX_DIMENSIONS} dimensions and {MAX_PAYLOAD} bytes, got "
                f"{array.ndim} and {array.nbytes}"
            )
        code = _DTYPES.index(array.dtype.name)
        content = np.ascontiguousarray(array, _WIRE_DTYPES[code]).tobytes()
        return cls(code, array.shape, content, zlib.crc32(content))

    @classmethod
    def of_bytes(cls, content: bytes) -> Body:
        """Prepare plain bytes, a vector of uint8."""
        return cls.of(np.frombuffer(content, np.uint8))


EMPTY = Body.of_bytes(b"")


def encode(frame: Frame, body: Body = EMPTY) -> bytes:
    """Return the bytes of a frame.

    Raises:
        UsageError: a field does not fit its place in the header.
    """
    name = frame.device.encode()
    if len(name) > NAME_BYTES:
        raise UsageError(f"a device's name has at most {NAME_BYTES} bytes, got {frame.device!r}")
    if len(frame.plan) != PLAN_BYTES:
        raise UsageError(f"expected {PLAN_BYTES} bytes of the plan's hash, got {len(frame.plan)}")
    try:
        header = HEADER.pack(
            MAGIC, VERSION, frame.kind, body.dtype, len(body.shape), frame.plan, frame.session,
            frame.sequence, frame.epoch, min(max(frame.budget, 0), MAX_BUDGET),
            min(frame.compute, MAX_BUDGET), min(frame.queue, MAX_BUDGET), len(body.content),
            *body.shape, *(0,) * (MAX_DIMENSIONS - len(body.shape)), frame.slot, frame.code, name,
        )  # fmt: skip
    except struct.error as error:
        raise UsageError(f"the frame {frame} does not fit its header: {error}") from None
    return header + CRC.pack(zlib.crc32(header, body.crc)) + body.content


def decode(data: bytes, *, limit: int = MAX_PAYLOAD) -> tuple[Frame, NDArray[np.generic]]:
    """Read a frame; the array is a read-only view of `data`.

    Args:
        data: what came.
        limit: the largest payload taken, in bytes.

    Raises:
        FrameError: not a whole and unchanged frame of this version. Nothing is allocated for it.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError("short", f"expected at least {HEADER_BYTES} bytes, got {len(data)}")
    (
        magic, version, kind, dtype, dimensions, plan, session, sequence, epoch, budget, compute,
        queue, length, *rest,
    ) = HEADER.unpack_from(data)  # fmt: skip
    shape, (slot, code, name) = rest[:MAX_DIMENSIONS], rest[MAX_DIMENSIONS:]
    if magic != MAGIC:
        raise FrameError("magic", f"expected a frame ({MAGIC!r}), got {magic!r}")
    if version != VERSION:
        raise FrameError("version", f"expected version {VERSION}, got {version}: update vitlet")
    if length > limit:
        raise FrameError("large", f"a payload of {length} bytes, the limit is {limit}")
    if len(data) != HEADER_BYTES + length:
        raise FrameError("length", f"expected {HEADER_BYTES + length} bytes, got {len(data)}")
    if kind not in _KINDS or code not in _CODES:
        raise FrameError("kind", f"there is no frame of kind {kind} with code {code}")
    if dtype >= len(_DTYPES):
        raise FrameError("dtype", f"there is no dtype {dtype}")
    sizes = tuple(shape[:dimensions])
    if dimensions > MAX_DIMENSIONS or any(shape[dimensions:]):
        raise FrameError("shape", f"{dimensions} dimensions of {shape}")
    if math.prod(sizes) * _WIRE_DTYPES[dtype].itemsize != length:
        raise FrameError("shape", f"{length} bytes are not {sizes} of {_DTYPES[dtype]}")
    payload = memoryview(data)[HEADER_BYTES:]
    (crc,) = CRC.unpack_from(data, HEADER.size)
    if zlib.crc32(memoryview(data)[: HEADER.size], zlib.crc32(payload)) != crc:
        raise FrameError("crc", "the checksum is wrong: the frame was changed on its way")
    try:
        device = name.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise FrameError("name", f"{name!r} is not the name of a device") from None
    frame = Frame(
        Kind(kind), plan, session, sequence, epoch, budget, compute, queue, slot, Code(code), device
    )
    array = np.frombuffer(payload, _WIRE_DTYPES[dtype]).reshape(sizes)
    return frame, array


def answer(request: Frame, kind: Kind, **changes: object) -> Frame:
    """Return the header of an answer to `request`: the same plan, request id, epoch and slot."""
    return replace(request, kind=kind, budget=0, **changes)  # type: ignore[arg-type]


_KINDS = frozenset(Kind)
_CODES = frozenset(Code)
