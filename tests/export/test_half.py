"""What float16 does to each tensor of a Core ML program, and which input shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_coreml import save

from vitlet.errors import ShapeError
from vitlet.export.half import TensorRange, half_ranges, overflow_notes, underflow_notes
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools


def executors(build: Any, folder: Path) -> tuple[CoreMLExecutor, CoreMLExecutor]:
    """Make a program that takes float16 (4,) and open it in both modes."""
    with quiet_coremltools():
        from coremltools.converters.mil import Builder as mb
        from coremltools.converters.mil.mil import types

        path = save(build, [mb.TensorSpec((4,), dtype=types.fp16)], folder / "m.mlpackage", 17)
    return CoreMLExecutor(path), CoreMLExecutor(path, "declared")


def feeds(**rows: list[float]) -> dict[str, dict[str, np.ndarray]]:
    return {name: {"x": np.array(row, np.float16)} for name, row in rows.items()}


def test_ranges_are_those_of_the_exact_values_and_name_their_input(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    both = executors(lambda x: mb.mul(x=x, y=np.float16(3), name="scaled"), tmp_path)
    (row,) = half_ranges(*both, feeds(small=[1, -2, 0, 1], big=[4, 1, 0, -1]))
    assert (row.name, row.op, row.declared, row.size) == ("scaled", "mul", "fp16", 4)
    assert (row.lowest, row.highest, row.largest, row.case) == (-6, 12, 12, "big")
    assert row.headroom == pytest.approx(65504 / 12)
    assert not row.overflow and not row.underflows and row.snr_db == 200


def test_overflow_names_the_first_tensor_and_the_first_input(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    def build(x: Any) -> Any:
        return mb.mul(x=mb.square(x=x, name="squared"), y=np.float16(0.5), name="after")

    both = executors(build, tmp_path)
    rows = half_ranges(*both, feeds(fine=[1, 2, 3, 4], hot=[300, 0, -400, 1], hotter=[999] * 4))
    squared = rows[0]
    assert squared.overflow == 6 and squared.overflow_case == "hot" and squared.case == "hotter"
    assert squared.headroom < 1
    (note,) = overflow_notes(rows)
    assert note.startswith("squared (square) leaves the range of float16 for hot")
    assert "1 tensors after" in note
    assert not overflow_notes(half_ranges(*both, feeds(fine=[1, 2, 3, 4])))


def test_underflow_names_the_tensor_and_the_input(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    def build(x: Any) -> Any:
        return mb.mul(x=mb.square(x=x, name="squared"), y=np.float16(60000), name="after")

    both = executors(build, tmp_path)
    rows = half_ranges(*both, feeds(fine=[1, 0, 3, 4], faint=[1e-4, 2e-4, -1e-4, 0]))
    assert rows[0].underflow == 2 and rows[0].lost_case == "faint" and rows[0].underflows
    (note,) = underflow_notes(rows)
    assert note.startswith("squared (square) is too small for float16 for faint")
    # A few tiny values beside large ones are no loss: softmax always has them.
    mixed = half_ranges(*both, feeds(mixed=[1, 1e-4, 1e-4, 1e-4]))
    assert mixed[0].underflow == 3 and not underflow_notes(mixed)


def test_minus_infinity_in_a_mask_is_no_overflow() -> None:
    row = TensorRange("scores", "add", "fp16", 2)
    row.add("a", np.array([-3.4e38, 1], np.float32), np.array([-np.inf, 1], np.float32))
    assert not row.overflow and row.largest == 1 and row.error == 0


def test_an_error_of_either_run_is_raised_and_leaves_no_thread(tmp_path: Path) -> None:
    import threading

    from coremltools.converters.mil import Builder as mb

    both = executors(lambda x: mb.square(x=x), tmp_path)
    before = threading.active_count()
    with pytest.raises(ShapeError, match="expected the inputs"):
        half_ranges(*both, {"a": {"y": np.zeros(4, np.float16)}})
    assert threading.active_count() == before
