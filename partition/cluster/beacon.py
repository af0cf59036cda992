"""A coordinator's call into the local network, and a worker's ear: for where multicast fails.

Zenoh's scouting is multicast, which some access points and containers swallow. A beacon is one UDP
datagram a second, to the broadcast address and to this machine, that says where a coordinator of a
cluster listens. It is a hint like any address: nothing it says is trusted, and with certificates
whoever answers there must prove itself.

| bytes | field |
| --- | --- |
| 0-3 | magic `VITB` |
| 4 | version 1 |
| 5 | 1 when the coordinator speaks TLS |
| 6-7 | its port |
| 8-39 | the cluster's name, padded with zeros |
| 40-43 | CRC-32 of the bytes before |

All numbers are little-endian. The host is that which the datagram came from.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
import zlib
from collections.abc import Sequence

from vitlet.errors import UsageError
from vitlet.partition.cluster.endpoints import PORT

MAGIC, VERSION = b"VITB", 1
PERIOD = 1.0  # seconds between beacons
EVERYWHERE = ("255.255.255.255", "127.0.0.1")
_FORM = struct.Struct("<4sBBH32s")
_CRC = struct.Struct("<I")


def pack_beacon(cluster: str, port: int, secure: bool) -> bytes:
    """Return the datagram of a coordinator."""
    content = _FORM.pack(MAGIC, VERSION, secure, port, cluster.encode("ascii"))
    return content + _CRC.pack(zlib.crc32(content))


def unpack_beacon(data: bytes) -> tuple[str, int, bool] | None:
    """Return cluster, port and whether it is TLS; None for what is no beacon of this version."""
    if len(data) != _FORM.size + _CRC.size:
        return None
    magic, version, secure, port, name = _FORM.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _FORM.size)
    if (magic, version) != (MAGIC, VERSION) or crc != zlib.crc32(data[: _FORM.size]):
        return None
    text = name.rstrip(b"\0")
    if secure > 1 or not port or not text.isascii():
        return None
    return text.decode("ascii"), port, bool(secure)


class Beacon:
    """Calls once a second until it is closed.

    Args:
        cluster: its name.
        port: where the coordinator listens.
        secure: whether it speaks TLS.
        targets: addresses to send to.
        to: the port that workers listen on.
    """

    def __init__(
        self,
        cluster: str,
        port: int,
        secure: bool,
        *,
        targets: Sequence[str] = EVERYWHERE,
        to: int = PORT,
    ) -> None:
        self._content = pack_beacon(cluster, port, secure)
        self._places = [(target, to) for target in targets]
        self._enough = threading.Event()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._thread = threading.Thread(target=self._run, name="vitlet-beacon", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call no more; again does nothing."""
        self._enough.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            for place in self._places:
                try:
                    self._socket.sendto(self._content, place)
                except OSError:
                    continue  # no such network at the moment; the next second may have it
            if self._enough.wait(PERIOD):
                return


def listen(cluster: str, secure: bool, seconds: float, *, port: int = PORT) -> str | None:
    """Wait for a coordinator's call; return its endpoint, or None when none came.

    Args:
        cluster: whose coordinator.
        secure: whether it must speak TLS; others are not heard.
        seconds: to wait.
        port: to listen on.

    Raises:
        UsageError: the port cannot be listened on.
    """
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        try:
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):  # several workers may listen on one machine
                ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ear.bind(("", port))
        except OSError as error:
            raise UsageError(f"UDP port {port} cannot be used: {error.strerror}") from None
        while (left := end - time.monotonic()) > 0:
            ear.settimeout(left)
            try:
                data, (host, *_) = ear.recvfrom(128)
            except OSError:
                return None  # the time is up
            found = unpack_beacon(data)
            if found is not None and found[0] == cluster and found[2] == secure:
                return f"{'tls' if secure else 'tcp'}/{host}:{found[1]}"
    return None
