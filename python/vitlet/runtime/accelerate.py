"""Our kernels inside ONNX Runtime: found, tried out in a process of their own, then registered.

A file that was exported with `accelerate` calls operators of the domain `ai.vitlet` and carries
their bodies in standard operators. With `libvitlet_ort` registered ONNX Runtime runs the kernels;
without it, or where it does not pass its test here, the bodies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

DOMAIN = "ai.vitlet"
ACCELERATE = "VITLET_ACCELERATE"  # the environment variable that turns it off
_CHECK = Path(__file__).with_name("accelerate_check.py")
_MODEL = Path(__file__).with_name("accelerate_check.onnx")
_SECONDS = 60


def calls_our_operators(path: Path) -> bool:
    """Tell whether an ONNX file names our domain."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(DOMAIN.encode()) >= 0


def usable_library() -> tuple[Path | None, str]:
    """Return the library if its kernels may run here; else None and why, in a few words.

    It is tried out once, in a subprocess, so that a library which does not suit this ONNX Runtime
    or processor cannot take the program with it. That it passed is remembered in the user's cache.
    `VITLET_ACCELERATE=0` turns it off.
    """
    if os.environ.get(ACCELERATE, "1").strip().lower() in ("0", "off", "no", "false"):
        return None, f"turned off by {ACCELERATE}"
    from vitlet.paths import ort_library

    library = ort_library()
    if library is None:
        return None, "this build of vitlet has no libvitlet_ort"
    reason = _problem(library, os.environ.get("VITLET_ISA", ""))
    return (None, reason) if reason else (library, "")


def warn_once(reason: str) -> None:
    """Say that the standard operators run instead, once for each reason."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"vitlet's kernels cannot be used in ONNX Runtime ({reason}): the same operators run "
            "from their definitions, slower",
            RuntimeWarning,
            stacklevel=2,
        )


_warned: set[str] = set()


@functools.cache
def _problem(library: Path, isa: str) -> str:
    remembered = cache_folder() / "accelerate.json"
    key = _key(library, isa)
    try:
        if json.loads(remembered.read_text(encoding="utf-8")).get("passed") == key:
            return ""
    except (OSError, ValueError, AttributeError):
        pass
    problem = _try_out(library)
    if not problem:
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            partial = remembered.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"passed": key}), encoding="utf-8")
            partial.replace(remembered)
        except OSError:
            pass  # a read-only home: tried out again next time
    return problem


def _key(library: Path, isa: str) -> str:
    from vitlet._extras import require
    from vitlet.ops.native import extension

    digest = hashlib.sha256(library.read_bytes() + _MODEL.read_bytes()).hexdigest()
    runtime = require("onnxruntime", extra="runtime", why="run an ONNX artefact")
    here = [platform.machine(), *extension.supported_isas(), isa]
    return " ".join([digest, str(runtime.__version__), platform.python_version(), *here])


def _try_out(library: Path) -> str:
    """Run the kernels against their definitions in a subprocess; return what went wrong."""
    command: list[Any] = [sys.executable, "-c", _CHECK.read_text(encoding="utf-8")]
    paths = [str(Path(entry).resolve()) for entry in sys.path if entry]
    try:
        done = subprocess.run(
            [*command, str(library), str(_MODEL)],
            cwd=library.parent,  # "" is on the child's path: nothing to import lies here
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"their test could not be run: {type(error).__name__}"
    if done.returncode == 0 and done.stdout.strip() == "ok":
        return ""
    if done.returncode < 0:
        return f"their test was ended by signal {-done.returncode}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return f"their test failed: {last[:200]}"


def cache_folder() -> Path:
    """Return where vitlet keeps what it can make again."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given) / "vitlet"
    try:
        home = Path.home()
    except RuntimeError:  # no home: nothing is remembered
        return Path(os.devnull) / "vitlet"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "vitlet"
