"""Results on stdout, everything else on stderr; JSON that is JSON."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vitlet.apps import units
from vitlet.apps.output import Output, columns
from vitlet.apps.plain import plain
from vitlet.apps.progress import Steps


def output(**given):
    return Output(**{"json": False, "quiet": False, "verbose": False, "progress": True, **given})


def test_prints_of_other_packages_do_not_reach_stdout(capsys):
    with output(json=True) as out:
        print("hello from a package")
        out.result({"a": 1}, lambda: None)
    stdout, stderr = capsys.readouterr()
    assert json.loads(stdout) == {"a": 1}
    assert stderr == "hello from a package\n"


def test_what_c_code_prints_does_not_reach_stdout(process):
    code = (
        "import os\n"
        "from vitlet.apps.output import Output\n"
        "with Output(True, False, False, False) as out:\n"
        "    os.write(1, b'from C\\n')\n"
        "    out.result([1], lambda: None)\n"
        "print('after')\n"
    )
    done = process(code=code)
    assert done.stdout.endswith("after\n") and json.loads(done.stdout.removesuffix("after\n")) == [
        1
    ]
    assert done.stderr == "from C\n"


def test_other_packages_warnings_are_shown_only_when_asked_for():
    with pytest.warns(UserWarning), output(verbose=True):
        warnings.warn("noise", UserWarning, stacklevel=1)
    with output():  # an error here if it got out: warnings are errors in these tests
        warnings.warn("noise", UserWarning, stacklevel=1)


def test_quiet_leaves_the_result_alone(capsys):
    with output(quiet=True) as out:
        out.log("log")
        out.next("vitlet models")
        out.result(None, lambda: out.print("result"))
    assert capsys.readouterr() == ("result\n", "")


def test_next_commands_are_not_part_of_the_result(capsys):
    with output() as out:
        out.result(None, lambda: out.print("result"))
        out.next("vitlet a", "vitlet b")
    stdout, stderr = capsys.readouterr()
    assert stdout == "result\n"
    assert stderr == "\nnext: vitlet a\n      vitlet b\n"


def test_tables_are_aligned_and_have_no_trailing_spaces(capsys):
    with output() as out:
        out.print(columns(("name", ">size"), [("a", "1.0 kB"), ("long", "12 B")]))
    assert capsys.readouterr().out == "name    size\na     1.0 kB\nlong    12 B\n"


def test_brackets_in_names_are_not_taken_for_markup(capsys):
    with output() as out:
        out.print(columns(("name",), [("[red]x[/red]",)]))
        out.log("[bold]y")
    stdout, stderr = capsys.readouterr()
    assert "[red]x[/red]" in stdout and "[bold]y" in stderr


@dataclass
class Point:
    x: np.float32
    where: Path


def test_plain_turns_everything_into_json():
    value = {"a": Point(np.float32(1.5), Path("p/q")), 1: (math.nan, math.inf), "s": {"b", "a"}}
    value["array"] = np.arange(3)
    assert plain(value) == {
        "a": {"x": 1.5, "where": "p/q"}, "1": [None, None], "s": ["a", "b"], "array": [0, 1, 2],
    }  # fmt: skip


def test_short_steps_leave_no_line_and_long_ones_leave_their_time(monkeypatch):
    clock = iter((0.0, 0.5, 10.0, 13.0))
    monkeypatch.setattr("vitlet.apps.progress.time.perf_counter", lambda: next(clock))
    lines: list[str] = []
    steps = Steps(enabled=False, log=lines.append)
    with steps.step("short"):
        pass
    with steps.step("long"):
        pass
    assert lines == ["long: 3.0 s"]


def test_a_step_that_fails_leaves_no_line_and_no_live_display(monkeypatch):
    clock = iter((0.0, 9.0))
    monkeypatch.setattr("vitlet.apps.progress.time.perf_counter", lambda: next(clock))
    lines: list[str] = []
    steps = Steps(enabled=True, log=lines.append)
    with pytest.raises(ValueError), steps.step("broken"):
        raise ValueError
    assert lines == [] and steps._live is None


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (units.size, 0, "0 B"),
        (units.size, 999, "999 B"),
        (units.size, 1000, "1.0 kB"),
        (units.size, 152_340, "152 kB"),
        (units.size, 25_280_000_000, "25.28 GB"),
        (units.count, 812, "812"),
        (units.count, 11_400_000, "11.4 M"),
        (units.count, 4_600_000_000, "4.60 G"),
        (units.milliseconds, 0.0314, "0.031"),
        (units.milliseconds, 1.234, "1.23"),
        (units.milliseconds, 12.34, "12.3"),
        (units.milliseconds, 1234.5, "1234"),
        (units.seconds, 3.04, "3.0 s"),
        (units.seconds, 125, "2 min 05 s"),
        (units.seconds, 59.97, "1 min 00 s"),
        (units.percent, 0.915, "91.5 %"),
    ],
)
def test_units_read_well(function, value, text):
    assert function(value) == text


def test_plurals():
    assert units.plural(1, "image") == "1 image"
    assert units.plural(0, "image") == "0 images"
    assert units.plural(2, "batch") == "2 batches"
