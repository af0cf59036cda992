"""The metrics against their definitions, and against what must never pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vitlet.errors import UsageError
from vitlet.export.compare import SNR_LIMIT, best_agree, compare, differences, neighbour_scores
from vitlet.export.tolerance import TABLE, parse_tolerance, tolerance_for

values = st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
rows = npst.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=values)


@given(rows)
def test_equal_outputs_are_perfect(output: np.ndarray) -> None:
    found = compare(output, output.copy())
    assert (found.max_abs, found.relative, found.nonfinite) == (0, 0, 0)
    assert found.snr_db == SNR_LIMIT and found.cosine == pytest.approx(1.0)


@given(rows, st.floats(0.015625, 10, width=32))
def test_figures_follow_their_definitions(output: np.ndarray, shift: float) -> None:
    other = output + np.float32(shift)
    found = compare(output, other)
    off = np.abs(other.astype(np.float64) - output).max(axis=1)
    size = np.abs(output).max(axis=1).astype(np.float64)
    assert found.max_abs == pytest.approx(off.max())
    with np.errstate(divide="ignore"):
        assert found.relative == pytest.approx(np.minimum(off / size, 1e9).max())
    cosines = [
        a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0
        for a, b in zip(output.astype(np.float64), other.astype(np.float64), strict=True)
    ]
    assert found.cosine == pytest.approx(min(1.0, *cosines, 1.0), abs=1e-9)


@given(rows, st.floats(0.125, 8, width=32))
def test_scaling_both_outputs_changes_no_relative_figure(output: np.ndarray, by: float) -> None:
    other = output * np.float32(1.01) + np.float32(0.01)
    one, two = compare(output, other), compare(output.astype(np.float64) * by, other * float(by))
    assert one.cosine == pytest.approx(two.cosine, abs=1e-6)
    assert one.relative == pytest.approx(two.relative, rel=1e-5)
    assert one.snr_db == pytest.approx(two.snr_db, abs=1e-3)


@given(rows, st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_one_value_that_is_not_finite_spoils_the_cosine(
    output: np.ndarray, bad: float, data: st.DataObject
) -> None:
    other = output.copy()
    other.reshape(-1)[data.draw(st.integers(0, output.size - 1))] = bad
    found = compare(output, other)
    assert found.nonfinite == 1 and found.cosine == -1.0 and np.isfinite(found.max_abs)
    assert not best_agree(output, other, 1.0).all()


@given(rows)
def test_the_worst_row_decides(output: np.ndarray) -> None:
    sound = compare(output, output)
    with_bad = compare(np.vstack([output, output[:1] + 1]), np.vstack([output, -output[:1]]))
    assert with_bad.max_abs >= sound.max_abs and with_bad.cosine <= sound.cosine


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32))


def test_best_class_agrees_on_a_tie_and_not_on_a_clear_loss() -> None:
    expected = np.array([[1.0, 0.9999999, -2.0]])
    assert best_agree(expected, np.array([[0.5, 0.6, 0.0]]), 1e-5).all()
    assert not best_agree(expected, np.array([[0.5, 0.4, 0.6]]), 1e-5).any()


def test_an_artefact_that_ignores_its_input_passes_by_value_and_fails_by_difference() -> None:
    random = np.random.default_rng(0)
    base = random.standard_normal((1, 64))
    expected = base + 1e-3 * random.standard_normal((5, 64))
    deaf = np.repeat(expected[:1], 5, axis=0)
    assert compare(expected, deaf).cosine > 0.99999
    found = differences(expected, deaf)
    assert found is not None and found.error > 0.9 and found.spread < 2e-3


@given(npst.arrays(np.float32, (4, 6), elements=values))
def test_a_constant_offset_is_no_difference_between_inputs(output: np.ndarray) -> None:
    found = differences(output, output + np.float32(3))
    assert found is not None and (found.error < 1e-2 or found.spread < 1e-3)


def test_neighbours_are_the_most_similar_other_rows() -> None:
    outputs = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert neighbour_scores(outputs).argmax(axis=1).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cosine=.999,max=1e-3,top1=1.0", {"cosine": 0.999, "max": 1e-3, "top1": 1.0}),
        (" rel = 2e-2 ", {"rel": 0.02}),
    ],
)
def test_tolerances_are_read(text: str, found: dict[str, float]) -> None:
    assert parse_tolerance(text) == found


@pytest.mark.parametrize(
    "text", ["", "cos=1", "cosine", "cosine=2", "max=-1", "max=nan", "max=inf", "max=1,max=2"]
)
def test_senseless_tolerances_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_tolerance(text)


def test_every_precision_that_can_be_exported_has_a_tolerance() -> None:
    from vitlet.export.targets import RULES

    for target, rule in RULES.items():
        for precision in rule.precisions:
            assert (target, precision) in TABLE
    assert tolerance_for("onnx", "fp32", {"rel": 0.5}).rel == 0.5
    with pytest.raises(UsageError, match="no tolerance"):
        tolerance_for("onnx", "int1")


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]))
def test_pictures_become_sound_png_files(height: int, width: int, channels: int) -> None:
    import base64
    import io

    from PIL import Image

    from vitlet.export.png import data_uri

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    uri = data_uri(pixels, smallest=1, largest=100)
    body = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    read = np.asarray(Image.open(io.BytesIO(body)))
    assert np.array_equal(read.reshape(height, width, channels), pixels)
