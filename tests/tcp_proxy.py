"""A TCP link that can be made slow, lossy, silent in one direction, or half-open.

TCP repairs loss: what programs see of it are pauses. So a lost chunk waits for a retransmission.
"""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from dataclasses import dataclass, field

RETRANSMIT = 0.2  # seconds: Linux's least
CHUNK = 1448  # bytes: a segment on Ethernet


@dataclass
class Way:
    """How bytes go in one direction: seconds of delay, share of segments lost, whether any go."""

    delay: float = 0.0
    loss: float = 0.0
    up: bool = True


@dataclass
class TcpProxy:
    """Forwards connections to `target`, a port of this machine; it listens on `port`.

    Attributes:
        forth: from who connects to the target.
        back: the other way.
        half_open: whether a side that is closed leaves the other one open and silent.
    """

    target: int
    forth: Way = field(default_factory=Way)
    back: Way = field(default_factory=Way)
    half_open: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(0)
        self._open = True
        self._links: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._open = False
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for link in (self._listener, *self._links):
            link.close()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # it was closed
            self._links.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
            except OSError:
                near.close()  # nobody listens there at the moment: who connected tries again
                continue
            self._links.append(far)
            for source, sink, way in ((near, far, self.forth), (far, near, self.back)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pump = threading.Thread(target=self._pump, args=(source, sink, way), daemon=True)
                pump.start()
                self._threads.append(pump)

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        waiting: list[tuple[float, bytes]] = []
        try:
            while self._open:
                now = time.monotonic()
                due = max(0.0, waiting[0][0] - now) if waiting else 0.1
                if select.select([source], [], [], min(due, 0.1) if way.up else 0.05)[0]:
                    data = source.recv(1 << 16) if way.up else b""
                    if way.up and not data:
                        break
                    if data:
                        when = time.monotonic() + way.delay
                        for _ in range(0, len(data), CHUNK):
                            while self._random.random() < way.loss:
                                when += RETRANSMIT
                        # What was sent later does not overtake.
                        when = max(when, waiting[-1][0] if waiting else 0.0)
                        waiting.append((when, data))
                    elif not way.up:
                        time.sleep(0.02)
                while waiting and way.up and waiting[0][0] <= time.monotonic():
                    sink.sendall(waiting.pop(0)[1])
        except (OSError, ValueError):
            pass  # one of them was closed
        while self.half_open and self._open:
            time.sleep(0.05)
        for link in (source, sink):
            link.close()
