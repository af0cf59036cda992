"""Asks every worker of a cluster how it is, without a plan."""

from __future__ import annotations

import threading
import time
from typing import Any

from vitlet.partition.control import unpack
from vitlet.partition.frame import FrameError
from vitlet.partition.topics import Topics
from vitlet.partition.transport import Transport


def survey(transport: Transport, topics: Topics, seconds: float) -> list[dict[str, Any]]:
    """Return what each worker tells about itself, by name; see `Worker.about`.

    Args:
        transport: carries the questions.
        topics: of the cluster.
        seconds: how long workers have to be found and to answer. A worker that is present and
            says nothing is listed with its name and "silent".
    """
    found: dict[str, dict[str, Any]] = {}
    lock = threading.Lock()

    def on_presence(key: str, is_there: bool) -> None:
        try:
            device, epoch = topics.who(key)
        except ValueError:
            return
        with lock:
            if not is_there:
                found.pop(device, None)
                return
            found[device] = {"device": device, "epoch": epoch, "silent": True}

        def arrived(content: bytes) -> None:
            try:
                about = unpack(content).table
            except FrameError as error:
                about = {"device": device, "epoch": epoch, "silent": True, "error": str(error)}
            with lock:
                if device in found:
                    found[device] = about

        transport.query(topics.about(device), b"", seconds, arrived, _done, lane=device)

    handle = transport.watch(topics.everybody, on_presence)
    time.sleep(seconds)
    handle.close()
    with lock:
        return [found[device] for device in sorted(found)]


def _done() -> None:
    return
