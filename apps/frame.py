"""Runs the command line and turns whatever happens into one line on stderr and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from vitlet.errors import VitletError

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130
BROKEN_PIPE = 128 + signal.SIGPIPE
# Of the operating system's errors, those that the user, not a programmer, can put right.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_USER_ERRORS = {
    *_NO_ROOM, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.EEXIST,
}  # fmt: skip


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> int:
    """Run `app` with `argv` (None: `sys.argv`) and return the exit code; nothing is raised."""
    import typer

    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a name that the terminal cannot show is not a reason to stop
            reconfigure(errors="replace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    command = typer.main.get_command(app)
    arguments = None if argv is None else list(argv)
    try:
        code = command.main(args=arguments, prog_name="vitlet", standalone_mode=False)
        sys.stdout.flush()
    except VitletError as error:
        return _fail(error, str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as error:  # typer answers a broken pipe itself, with 1
        if _is_broken_pipe(error.__context__):
            return _broken_pipe()
        return error.code if isinstance(error.code, int) else 1
    except OSError as error:
        if _is_broken_pipe(error):
            return _broken_pipe()
        if error.errno in _USER_ERRORS:
            where = f"{error.filename}: " if error.filename else ""
            return _fail(error, f"{where}{error.strerror}{_advice(error)}", 1)
        return _unexpected(error)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's own, whose class has moved about
        if usage is None:
            return _unexpected(error)
        return _fail(error, _usage_message(error, usage()), 2)
    if code == INTERRUPTED:
        _say("interrupted: nothing half-written is left behind")
    return code if isinstance(code, int) else 0


def _usage_message(error: Exception, message: str) -> str:
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else "vitlet"
    near = getattr(error, "possibilities", None)
    if near:
        message = (
            f"{getattr(error, 'message', message)} (did you mean {' or '.join(sorted(near))}?)"
        )
    return f"{message.rstrip('.')}; see `{verb} --help`"


def _advice(error: OSError) -> str:
    if error.errno in _NO_ROOM:
        return ": make room or choose another folder; nothing half-written is left behind"
    return ""


def _fail(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("VITLET_DEBUG"):
        traceback.print_exception(error)
    _say(f"error: {' '.join(message.split())}")
    return code


def _unexpected(error: Exception) -> int:
    return _fail(
        error,
        f"unexpected {type(error).__name__}: {error} (this is a bug in vitlet: please report it, "
        "with what `VITLET_DEBUG=1` before the same command prints)",
        1,
    )


def _say(line: str) -> None:
    try:
        if line.startswith("error:") and _coloured():
            line = f"\033[1;31merror:\033[0m{line.removeprefix('error:')}"
        print(line, file=sys.stderr, flush=True)
    except OSError:
        return  # stderr is closed: nobody is left to tell


def _coloured() -> bool:
    return (
        sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def _is_broken_pipe(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _broken_pipe() -> int:
    # The reader (`head`) has gone; what is still buffered must not fail again at exit.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123 - lives until the process ends
    return BROKEN_PIPE


def _terminate(number: int, frame: FrameType | None) -> None:
    # An exception, so that `finally` clauses remove temporary folders.
    raise SystemExit(128 + number)
