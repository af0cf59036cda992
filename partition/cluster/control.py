"""Orders to a worker and its answers: a table, and bytes beside it, in one control frame."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

from vitlet.errors import VitletError
from vitlet.partition.cluster.frame import PLAN_BYTES, Body, Frame, FrameError, Kind, decode, encode

_SIZE = struct.Struct("<I")
TABLE_LIMIT = 4 << 20  # bytes of JSON; a plan for 1,000 classes needs 40 KB


class RemoteError(VitletError):
    """A worker refused an order; the message is its own."""


@dataclass(frozen=True)
class Message:
    """What a control frame holds.

    Attributes:
        table: what is ordered or answered.
        data: bytes that go with it.
        session: random number of the sender's process.
        sequence: counts its messages.
        epoch: of the worker's process that is meant; 0 for any.
    """

    table: dict[str, Any]
    data: bytes = b""
    session: int = 0
    sequence: int = 0
    epoch: int = field(default=0)


def pack(message: Message) -> bytes:
    """Return the frame of a message."""
    table = json.dumps(message.table, allow_nan=False).encode("ascii")
    header = Frame(
        Kind.CONTROL, bytes(PLAN_BYTES), message.session, message.sequence, message.epoch
    )
    return encode(header, Body.of_bytes(_SIZE.pack(len(table)) + table + message.data))


def unpack(frame: bytes) -> Message:
    """Read a message.

    Raises:
        FrameError: not a sound control frame.
    """
    header, array = decode(frame)
    content = array.tobytes()
    if header.kind is not Kind.CONTROL or len(content) < _SIZE.size:
        raise FrameError("kind", "expected a control frame")
    (size,) = _SIZE.unpack_from(content)
    if size > min(TABLE_LIMIT, len(content) - _SIZE.size):
        raise FrameError("length", f"a table of {size} bytes in {len(content)}")
    end = _SIZE.size + size
    try:
        table = json.loads(content[_SIZE.size : end])
    except (ValueError, RecursionError) as error:
        raise FrameError("table", f"the table cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise FrameError("table", "the table is not one")
    return Message(table, content[end:], header.session, header.sequence, header.epoch)
