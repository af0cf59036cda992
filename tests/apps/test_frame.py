"""Whatever happens ends as one line on stderr and a documented exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import typer

from vitlet import errors
from vitlet.apps.frame import run


def app_that(action):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback(invoke_without_command=True)
    def start() -> int | None:
        return action()

    return app


def raising(error):
    def action():
        raise error

    return app_that(action)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.VitletError("m"), 1),
        (errors.StorageError("m"), 1),
        (errors.UsageError("m"), 2),
        (errors.ShapeError("m"), 2),
        (errors.UnsupportedError("m"), 3),
        (errors.VerificationError("m"), 4),
        (errors.MissingDependencyError("m"), 5),
        (errors.CorruptInputError("m"), 6),
        (errors.BundleError("m"), 6),
        (errors.DeadlineError("m"), 7),
        (KeyboardInterrupt(), 130),
        (RuntimeError("m"), 1),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(error, code, capsys):
    assert run(raising(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_a_message_of_several_lines_is_joined(capsys):
    run(raising(errors.UsageError("first\n  second")), [])
    assert capsys.readouterr().err == "error: first second\n"


def test_an_unexpected_error_asks_for_a_report_and_names_the_debug_switch(capsys):
    run(raising(KeyError("x")), [])
    err = capsys.readouterr().err
    assert "KeyError" in err and "report" in err and "VITLET_DEBUG=1" in err


def test_the_debug_switch_prints_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("VITLET_DEBUG", "1")
    assert run(raising(errors.UsageError("m")), []) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_the_users_to_mend_not_a_bug(capsys):
    assert run(raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x")), []) == 1
    err = capsys.readouterr().err
    assert "out/x" in err and "make room" in err and "bug" not in err


def test_a_number_that_a_verb_returns_is_the_exit_code():
    assert run(app_that(lambda: 6), []) == 6
    assert run(app_that(lambda: None), []) == 0


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["modles"], "models"),
        (["bench", "x", "--jsn"], "--json"),
        (["predict"], "BUNDLE"),
        (["bench", "x", "--iters", "many"], "--iters"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_hint(cli, argv, hint):
    ran = cli(*argv)
    assert ran.code == 2
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert hint in ran.err and "--help" in ran.err


def test_a_reader_that_leaves_early_is_not_an_error_message(process):
    code = (
        "import os, subprocess, sys\n"
        "read, write = os.pipe()\n"
        "os.close(read)\n"
        "start = 'import sys; from vitlet.apps.cli import main; sys.exit(main())'\n"
        "done = subprocess.run([sys.executable, '-c', start, 'doctor'], stdout=write,\n"
        "                      stderr=subprocess.PIPE, text=True)\n"
        "print(done.returncode, 'error' in done.stderr or 'Traceback' in done.stderr)\n"
    )
    assert process(code=code).stdout.split() == ["141", "False"]


def wait_for(path, process):
    for _ in range(400):
        if path.exists():
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("the process never got there")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_process_cleans_up_and_says_so_with_its_code(tmp_path, number, code):
    script = (
        "import signal, sys, time, typer\n"
        "from pathlib import Path\n"
        "from vitlet.apps.frame import run\n"
        # A shell that starts the tests in the background has Ctrl-C ignored below it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "app = typer.Typer()\n"
        "@app.callback(invoke_without_command=True)\n"
        "def start():\n"
        f"    place = Path({str(tmp_path / 'half')!r})\n"
        "    try:\n"
        "        place.write_text('half')\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        place.unlink()\n"
        "sys.exit(run(app, []))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            wait_for(tmp_path / "half", child)
            child.send_signal(number)
            _, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert child.returncode == code
    assert "Traceback" not in err
    assert not (tmp_path / "half").exists()


def test_without_typer_there_is_one_line_with_the_pip_command(process):
    code = (
        "import sys\n"
        "sys.modules['typer'] = None\n"
        "from vitlet.apps.cli import main\n"
        "sys.exit(main([]))\n"
    )
    done = process(code=code)
    assert done.returncode == 5
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert 'pip install "vitlet[runtime]"' in done.stderr
