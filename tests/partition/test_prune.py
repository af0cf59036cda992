"""One sub-model: scored, cut, retrained; what is finished is kept, what cannot work is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitlet.compress.pictures import Pictures
from vitlet.compress.training import Recipe
from vitlet.data.labelled import LabelledImages
from vitlet.errors import TrainingError, UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import widths_of
from vitlet.partition.submodels.jobs import run_jobs
from vitlet.partition.submodels.prune import Lecture, Task, make_submodel
from vitlet.partition.submodels.student import Student, own_labels
from vitlet.partition.submodels.teacher import answers
from vitlet.partition.submodels.widths import Geometry, Widths, cost, keep_heads

SMALL = Widths(16, 8, (2, 1), (24, 40))
SHORT = Recipe(epochs=1, batch=50, lr=2e-3, average=0.9)


@pytest.fixture(scope="module")
def lecture(full: DeiT, pictures: Pictures) -> Lecture:
    return Lecture(full, pictures, answers(full, pictures), torch.arange(600), "a lecture")


def task(**change: Any) -> Task:
    long = replace(SHORT, epochs=5)
    made = Task("slot-00", (1, 3), SMALL, short=SHORT, long=long, pictures=32)
    return replace(made, **change)


@pytest.fixture(scope="module")
def made(
    lecture: Lecture, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Student, Path, list[dict[str, Any]]]:
    folder, seen = tmp_path_factory.mktemp("made"), []
    return make_submodel(lecture, task(), folder, seen.append), folder, seen


def same(a: Student, b: Student) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_sub_model_has_its_widths_and_tells_its_classes_apart(
    made: tuple[Student, Path, list[dict[str, Any]]], full: DeiT, test_data: LabelledImages,
    pictures: Pictures,
) -> None:  # fmt: skip
    student = made[0]
    assert widths_of(student.vit) == SMALL and not student.training
    params = sum(p.numel() for n, p in student.vit.named_parameters() if not n.startswith("head."))
    assert params == cost(Geometry.of(full), SMALL).params
    judged = Pictures(test_data, pictures.spec)
    with torch.no_grad():
        own, _ = student(judged.batch(torch.arange(300)))
    right = own.argmax(-1) == own_labels(judged.labels, (1, 3), 6)
    assert float(right.float().mean()) > 0.8  # "other" alone gives 0.67
    assert float(right[own_labels(judged.labels, (1, 3), 6) > 0].float().mean()) > 0.6


def test_three_cuts_are_retrained_shortly_and_the_end_longer(
    made: tuple[Student, Path, list[dict[str, Any]]],
) -> None:
    names = [entry["run"].removeprefix("slot-00 ") for entry in made[2]]
    assert names == ["channels", "heads", "hidden", *["final"] * 5]


def test_what_is_finished_is_not_made_again(
    made: tuple[Student, Path, list[dict[str, Any]]], lecture: Lecture
) -> None:
    seen: list[dict[str, Any]] = []
    assert same(make_submodel(lecture, task(), made[1], seen.append), made[0]) and not seen


def test_a_sub_model_stopped_between_epochs_ends_in_the_same_weights(
    made: tuple[Student, Path, list[dict[str, Any]]], lecture: Lecture, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(entry: dict[str, Any]) -> None:
        if (entry["run"], entry["epoch"]) == ("slot-00 final", 3):
            raise Stopped

    with pytest.raises(Stopped):
        make_submodel(lecture, task(), tmp_path, stop)
    seen: list[dict[str, Any]] = []
    again = make_submodel(lecture, task(), tmp_path, seen.append)
    assert [entry["epoch"] for entry in seen] == [3, 4, 5]
    assert same(again, made[0])


def test_jobs_at_once_give_the_same_weights(
    made: tuple[Student, Path, list[dict[str, Any]]], lecture: Lecture, tmp_path: Path
) -> None:
    short = replace(task(), short=replace(SHORT, epochs=0), long=SHORT)
    tasks = [replace(short, name=f"slot-{i:02d}", classes=(i,)) for i in range(2)]
    told: list[dict[str, Any]] = []
    together = run_jobs(lecture, tasks, tmp_path / "two", jobs=2, progress=told.append)
    assert sorted(entry["run"] for entry in told) == ["slot-00 final", "slot-01 final"]
    apart = run_jobs(lecture, tasks, tmp_path / "one")
    assert all(same(a, b) for a, b in zip(together, apart, strict=True))
    assert (tmp_path / "two" / "slot-01" / "journal.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize("ranking", ["uniform", "magnitude", "scratch"])
def test_other_rankings_give_other_sub_models_of_the_same_widths(
    ranking: Any, made: tuple[Student, Path, list[dict[str, Any]]], lecture: Lecture, tmp_path: Path
) -> None:
    untrained = replace(SHORT, epochs=0)
    how = task(ranking=ranking, short=untrained, long=untrained)
    student = make_submodel(lecture, how, tmp_path)
    method = make_submodel(lecture, replace(how, ranking="class-wise"), tmp_path / "method")
    assert widths_of(student.vit) == SMALL
    assert not student.vit.patch_embed.proj.weight.equal(method.vit.patch_embed.proj.weight)


def test_no_cut_is_made_where_nothing_is_to_go(lecture: Lecture, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    everything = keep_heads(Geometry.of(lecture.model), 4)
    how = task(widths=replace(everything, heads=(1, 4)), long=replace(SHORT, epochs=0))
    make_submodel(lecture, how, tmp_path, seen.append)
    assert [entry["run"] for entry in seen] == ["slot-00 heads"]


def test_a_rate_that_is_far_too_high_ends_in_words(lecture: Lecture, tmp_path: Path) -> None:
    wild = replace(SHORT, lr=1e30, warmup=0.0)
    with pytest.raises(TrainingError, match=r"slot-00 channels: the loss became (nan|inf)"):
        make_submodel(lecture, task(short=wild), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ()}, "different classes"),
        ({"classes": (1, 1)}, "different classes"),
        ({"classes": (6,)}, "from 0 to 5"),
        ({"widths": Widths(33, 8, (1, 1), (1, 1))}, "wider than the full model"),
        ({"widths": Widths(16, 8, (1, 5), (1, 1))}, "wider than the full model"),
        ({"widths": Widths(16, 16, (1, 1), (1, 1))}, "head size 8"),
        ({"widths": Widths(16, 8, (1,), (1,))}, "2 blocks"),
    ],
)
def test_impossible_tasks_are_refused(
    change: dict[str, Any], said: str, lecture: Lecture, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        make_submodel(lecture, task(**change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_without_pictures_is_named(lecture: Lecture, tmp_path: Path) -> None:
    without: Tensor = (lecture.pictures.labels != 3).nonzero()[:, 0]
    with pytest.raises(UsageError, match="at least 1 picture of every class, but d has fewer"):
        make_submodel(replace(lecture, allowed=without), task(), tmp_path)


def test_jobs_must_be_at_least_one(lecture: Lecture, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one job, got 0"):
        run_jobs(lecture, [task()], tmp_path, jobs=0)
