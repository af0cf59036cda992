"""A Ray cluster makes the same sub-models as this process. Skipped where Ray is not installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Recipe
from vitlet.data.labelled import LabelledImages
from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.jobs import run_jobs
from vitlet.partition.submodels.prune import Lecture, Task
from vitlet.partition.submodels.teacher import model_digest
from vitlet.partition.submodels.train import hold_out, make_lecture
from vitlet.partition.submodels.widths import Geometry, keep_heads

pytest.importorskip("ray", reason='pip install "vitlet[ray]"')
pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and processes to the end of the interpreter, and says what it will change.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]


@pytest.fixture
def lecture(full: DeiT, data: LabelledImages, tmp_path: Path) -> Lecture:
    pictures = Pictures(data, full.info.preprocess)
    allowed, _ = hold_out(pictures.labels, 0.05, 0)
    return make_lecture(full, pictures, allowed, tmp_path)


def tasks_for(full: DeiT) -> list[Task]:
    recipe = Recipe(epochs=1, batch=50, lr=2e-3)
    widths = keep_heads(Geometry.of(full), 2)
    return [
        Task(f"slot-{i}", classes, widths, short=recipe, long=recipe, pictures=32)
        for i, classes in enumerate(((0, 1, 2), (3, 4, 5)))
    ]


def test_a_cluster_makes_the_same_sub_models(full: DeiT, lecture: Lecture, tmp_path: Path) -> None:
    tasks = tasks_for(full)
    here = run_jobs(lecture, tasks, tmp_path / "here", jobs=2)
    epochs: list[object] = []
    there = run_jobs(lecture, tasks, tmp_path / "there", ray="local", progress=epochs.append)
    assert not epochs  # all was trained by the cluster, nothing again here
    assert list(map(model_digest, there)) == list(map(model_digest, here))
    # What is finished is not made again, and a mistake comes back as what it is.
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "there").rglob("weights.safetensors")}
    wrong = replace(tasks[1], name="wrong", classes=(3, 9))
    with pytest.raises(UsageError, match="classes go from 0 to 5"):
        run_jobs(lecture, [tasks[0], wrong], tmp_path / "there", ray="local")
    assert times and all(model_digest(one) for one in there)
    with pytest.raises(UsageError, match="no Ray cluster at"):
        run_jobs(lecture, tasks, tmp_path / "none", ray="127.0.0.1:1")
