"""Keeps coremltools' progress bars, notes and third-party warnings out of our output."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Silence coremltools.

    Its bars cannot be switched off, and its logger speaks of every library that is newer than the
    one it was tested with.
    """
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
