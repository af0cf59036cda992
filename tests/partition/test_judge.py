"""What is said of a split's answers: accuracies with devices lost, recall, tables, the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vitlet.errors import ShapeError, UsageError
from vitlet.partition.chart import Point, chart
from vitlet.partition.evaluate import Evaluation, OnDevice
from vitlet.partition.submodels.judge import Judgement, calibration_error, judge, softmax
from vitlet.partition.tables import comparison_table

CLASSES = ((0, 3), (1,), (2,))
HOLDERS = (("one",), ("two", "three"), ("three",))
LABELS = np.array([0, 0, 1, 2, 2, 2, 3, 3])
SAID = np.array([0, 3, 1, 2, 2, 1, 3, 3])  # six of eight are right


def answer(missing: tuple[int, ...]) -> NDArray[np.float64]:
    """Logits of `SAID`; of a missing slot's classes class 1 or else 0 is said."""
    lost = {c for i in missing for c in CLASSES[i]}
    said = [c if c not in lost else (1 if 1 not in lost else 0) for c in SAID]
    return 4.0 * np.eye(4)[said]


@pytest.fixture(scope="module")
def judgement() -> Judgement:
    return judge(answer, LABELS, CLASSES, HOLDERS)


def test_accuracy_and_recall_are_counted(judgement: Judgement) -> None:
    assert judgement.whole.accuracy == 6 / 8 and judgement.pictures == 8
    assert judgement.recall == (1 / 2, 1, 2 / 3, 1)


def test_every_device_and_every_pair_is_lost_once(judgement: Judgement) -> None:
    one, two, three = judgement.one_lost
    assert (one.missing, one.covered) == ((0,), (1, 2))
    assert (one.accuracy, one.accuracy_covered) == (3 / 8, 3 / 4)
    assert two.missing == () and two.accuracy == 6 / 8  # "three" holds its replica
    assert three.missing == (2,) and three.covered == (0, 1, 3)
    assert [case.lost for case in judgement.two_lost] == [
        ("one", "two"), ("one", "three"), ("two", "three"),
    ]  # fmt: skip
    assert judgement.two_lost[2].missing == (1, 2) and judgement.two_lost[2].accuracy == 3 / 8


def test_with_everything_lost_nothing_is_right() -> None:
    (case,) = judge(answer, LABELS, ((0, 1, 2, 3),), (("only",),)).one_lost
    assert (case.accuracy, case.covered) == (0, ())


def test_a_class_without_pictures_has_no_recall() -> None:
    found = judge(answer, np.array([0, 0, 1, 2, 2, 2, 0, 0]), CLASSES, HOLDERS)
    assert np.isnan(found.recall[3])
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["recall"][3] is None


def test_calibration_error_is_the_mean_gap_of_confidence_and_accuracy() -> None:
    sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])  # of the two at 0.9 one is right, of those at 0.6 both
    wanted = (abs(2 * 0.9 - 1) + abs(2 * 0.6 - 2)) / 4
    assert calibration_error(sure, labels) == pytest.approx(wanted)
    assert softmax(np.log(sure)) == pytest.approx(sure)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(UsageError, match="expected pictures"):
        judge(answer, LABELS[:0], CLASSES, HOLDERS)
    with pytest.raises(UsageError, match="classes and holders"):
        judge(answer, LABELS, CLASSES, HOLDERS[:2])
    with pytest.raises(ShapeError, match="finite logits"):
        judge(lambda missing: np.full((8, 4), np.nan), LABELS, CLASSES, HOLDERS)


def test_plans_are_compared_by_their_number_of_devices(judgement: Judgement) -> None:
    def of(count: int) -> Evaluation:
        devices = [OnDevice(f"d{i}", (i,), 100, 150, 1, 1, 2e-3) for i in range(count)]
        return Evaluation(tuple("abcd"), (0.25,) * 4, judgement, tuple(devices), 50, 1e-4)

    rows = comparison_table([of(10), of(2)]).splitlines()
    assert [row.split()[0] for row in rows] == ["devices", "2", "10"]
    assert "75.00 %" in rows[1] and "37.50 %" in rows[1] and "2.000 ms" in rows[1]
    assert rows[1].endswith("350") and rows[2].endswith("1,550")  # replicas and fusion too


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", exc_type=ImportError)
    points = [Point(5, 0.9, 0.7, 10_000, 50_000), Point(2, 0.91, None, 40_000, 80_000)]
    chart(points, tmp_path / "x.svg", full=(0.92, 100_000))
    text = (tmp_path / "x.svg").read_text()
    assert text.count("<path") > 10 and "<svg" in text
    with pytest.raises(UsageError, match="at least one"):
        chart([], tmp_path / "y.svg")
