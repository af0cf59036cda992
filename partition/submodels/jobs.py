"""Makes the sub-models of a split, one after the other or several at once."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from vitlet.compress.training import file_journal
from vitlet.errors import UsageError
from vitlet.partition.submodels.prune import Lecture, Task, make_submodel
from vitlet.partition.submodels.student import Student

JOURNAL = "journal.jsonl"
_LOOK = 0.5  # seconds between looks at what the processes write into their journals
_lecture: Lecture | None = None  # of a worker process: given once, not with every task


def run_jobs(
    lecture: Lecture,
    tasks: Sequence[Task],
    work: Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[Student]:
    """Make every sub-model in its folder ``work/NAME``; see `make_submodel`.

    Args:
        lecture: what they are made from.
        tasks: with different names.
        work: each keeps its journal there, in ``NAME/journal.jsonl``.
        jobs: how many at once. With more than one, each is a process of one thread, and gives the
            same weights as one job in a process of one thread does.
        ray: address of a Ray cluster that makes them instead (`ray_jobs`).
        progress: told of each epoch (on Ray of none).

    Returns:
        The students, in the order of the tasks.

    Raises:
        UsageError: fewer than one job.
        As `make_submodel`: the first error; other jobs finish their sub-model first.
    """
    if jobs < 1:
        raise UsageError(f"expected at least one job, got {jobs}")
    if ray is not None:
        from vitlet.partition.submodels.ray_jobs import run_on_ray

        run_on_ray(lecture, tasks, work, ray)
    elif jobs > 1 and len(tasks) > 1:
        # Not fork: torch's threads do not survive it.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(jobs, len(tasks)), context, initializer=_begin, initargs=(lecture,)
        ) as pool:
            follow = _Follower([work / task.name / JOURNAL for task in tasks], progress)
            waiting: set[Future[None]] = {
                pool.submit(_work, task, work / task.name) for task in tasks
            }
            while waiting:
                finished, waiting = wait(waiting, timeout=_LOOK, return_when=FIRST_COMPLETED)
                follow.look()
                for done in finished:
                    done.result()
    students = []
    for task in tasks:  # what the processes finished is read here
        write = file_journal(work / task.name / JOURNAL)

        def note(entry: dict[str, Any], write: Callable[[dict[str, Any]], None] = write) -> None:
            write(entry)
            if progress is not None:
                progress(entry)

        students.append(make_submodel(lecture, task, work / task.name, note))
    return students


def _begin(lecture: Lecture) -> None:
    global _lecture
    torch.set_num_threads(1)
    _lecture = lecture


def _work(task: Task, folder: Path) -> None:
    assert _lecture is not None
    make_submodel(_lecture, task, folder, file_journal(folder / JOURNAL))


class _Follower:
    """Tells of the epochs that other processes write into their journals from now on."""

    def __init__(
        self, journals: Sequence[Path], tell: Callable[[dict[str, Any]], None] | None
    ) -> None:
        self.tell = tell
        self.read = {path: path.stat().st_size if path.is_file() else 0 for path in journals}

    def look(self) -> None:
        if self.tell is None:
            return
        for path, begin in self.read.items():
            if not path.is_file():
                continue
            with path.open("rb") as file:
                file.seek(begin)
                whole, newline, _ = file.read().rpartition(b"\n")  # a line may be half written
            self.read[path] = begin + len(whole) + len(newline)
            for line in whole.splitlines():
                self.tell(json.loads(line))
