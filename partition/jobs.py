"""Makes the sub-models of a split, one after the other or several at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from vitlet.errors import UsageError
from vitlet.partition.prune import Lecture, Task, make_submodel
from vitlet.partition.student import Student
from vitlet.partition.training import file_journal

JOURNAL = "journal.jsonl"
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
        ray: address of a Ray cluster that makes them instead (`vitlet.partition.ray_jobs`).
        progress: told of each epoch (one job only).

    Returns:
        The students, in the order of the tasks.

    Raises:
        UsageError: fewer than one job.
        As `make_submodel`: the first error; other jobs finish their sub-model first.
    """
    if jobs < 1:
        raise UsageError(f"expected at least one job, got {jobs}")
    if ray is not None:
        from vitlet.partition.ray_jobs import run_on_ray

        run_on_ray(lecture, tasks, work, ray)
    elif jobs > 1 and len(tasks) > 1:
        # Not fork: torch's threads do not survive it.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(jobs, len(tasks)), context, initializer=_begin, initargs=(lecture,)
        ) as pool:
            waiting = [pool.submit(_work, task, work / task.name) for task in tasks]
            for done in as_completed(waiting):
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
