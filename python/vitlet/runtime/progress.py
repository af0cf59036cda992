"""How long work reports what it is doing: a function that gives a context manager per step.

``with progress("trace image"): ...``. The command line passes one that draws; the default is quiet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[str], AbstractContextManager[object]]


def null_progress(step: str) -> AbstractContextManager[object]:
    """Do nothing for `step`: what library functions use when no progress is asked for."""
    return nullcontext(step)
