"""Measured joules, from counters as the system shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitlet.errors import UsageError
from vitlet.runtime.rapl import Rapl, measure_joules


@pytest.fixture
def zones(tmp_path: Path) -> Path:
    """Two packages, and a part of the first, which is not counted again."""
    for name, start in (("intel-rapl:0", 900), ("intel-rapl:1", 50), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{start}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    (tmp_path / "intel-rapl").mkdir()
    return tmp_path


def test_runs_are_charged_what_was_counted_meanwhile(zones: Path) -> None:
    counter = zones / "intel-rapl:1" / "energy_uj"
    counter.with_name("max_energy_range_uj").write_text(str(10**12))

    def run() -> None:
        counter.write_text(str(int(counter.read_text()) + 3_000_000))

    found = measure_joules(run, seconds=0.02, root=zones)
    assert found is not None and found.runs >= 1
    assert found.joules == pytest.approx(3.0 * found.runs) and found.each == pytest.approx(3.0)
    assert found.idle_watts == 0.0 and found.above_idle == found.each


def test_a_counter_that_starts_over_loses_nothing(zones: Path) -> None:
    rapl = Rapl(zones)
    before = rapl.counts()
    assert before == [900, 50]
    (zones / "intel-rapl:0" / "energy_uj").write_text("100")  # 900 -> 1000 = 0 -> 100
    assert rapl.since(before) == pytest.approx(200e-6)


def test_without_a_counter_there_is_no_figure(zones: Path, tmp_path: Path) -> None:
    assert measure_joules(lambda: None, root=tmp_path / "absent") is None
    for zone in zones.glob("intel-rapl:?"):
        (zone / "energy_uj").unlink()  # as where only root may read it
    assert not Rapl(zones)
    with pytest.raises(UsageError, match="seconds > 0"):
        measure_joules(lambda: None, seconds=0.0)
