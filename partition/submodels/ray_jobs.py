"""Makes sub-models on a Ray cluster: the same tasks as `jobs`, sent elsewhere.

Ray runs what it is told by anybody who reaches it: use it on a network that you trust.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vitlet._extras import require
from vitlet.compress.training import RECORD, WEIGHTS
from vitlet.errors import DeadlineError, StorageError, UsageError, VitletError
from vitlet.partition.submodels.prune import Lecture, Task, make_submodel

LOCAL = "local"
_FINAL = "final"  # the folder in which `make_submodel` leaves its result


def run_on_ray(lecture: Lecture, tasks: Sequence[Task], work: Path, address: str) -> None:
    """Make every sub-model on a cluster and bring its weights into ``work/NAME/final``.

    What a task finished comes home at once; after a kill only tasks that were under way begin anew.

    Args:
        lecture: what they are made from; sent once to each machine.
        tasks: with different names.
        work: the folder that `vitlet.partition.submodels.jobs.run_jobs` reads them from.
        address: "host:port" of a cluster, "auto", or "local" to start one on this machine.

    Raises:
        MissingDependencyError: Ray is not installed.
        UsageError: there is no cluster at the address.
        DeadlineError: a machine of the cluster was lost and nobody could take its task.
        As `make_submodel`.
    """
    ray: Any = require("ray", extra="ray", why="train on a cluster")
    own = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no Ray cluster at {address!r} ({error}): start one with `ray start --head`, or use "
            f"--ray {LOCAL}"
        ) from None
    try:
        given = ray.put(lecture)
        make = ray.remote(num_cpus=1, max_retries=2)(_make)
        waiting = {make.remote(given, task, _found(work / task.name)): task for task in tasks}
        while waiting:
            for done in ray.wait(list(waiting), num_returns=1)[0]:
                task = waiting.pop(done)
                _keep(ray.get(done), work / task.name)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, VitletError):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise DeadlineError(f"the Ray cluster lost a task: {error}; run the same again") from None
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _make(lecture: Lecture, task: Task, found: dict[str, bytes]) -> dict[str, bytes]:
    """Make one sub-model on whatever machine this runs on; return its finished files."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _keep(found, Path(folder))
        make_submodel(lecture, task, Path(folder))
        return _found(Path(folder))


def _found(folder: Path) -> dict[str, bytes]:
    files = [folder / _FINAL / name for name in (WEIGHTS, RECORD)]
    return {path.name: path.read_bytes() for path in files} if all(map(Path.is_file, files)) else {}


def _keep(files: dict[str, bytes], folder: Path) -> None:
    """Write finished files: the record last, as it says that the weights are there."""
    try:
        for name in (WEIGHTS, RECORD):
            if name in files:
                (folder / _FINAL).mkdir(parents=True, exist_ok=True)
                part = folder / _FINAL / f"{name}.part"
                part.write_bytes(files[name])
                part.replace(folder / _FINAL / name)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
