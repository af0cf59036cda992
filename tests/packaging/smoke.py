"""Run in a venv that holds an installed wheel: does the package work without its source tree?

    python smoke.py [BUNDLE IMAGE]

With the `runtime` extra installed and a bundle given, predicts too. Prints what it checked and
fails with exit code 1. Standard library and numpy only, since a plain install brings no more.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


def check(fact: bool, what: str) -> None:
    if not fact:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("vitlet")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)


def check_package() -> None:
    import vitlet
    from vitlet import _C

    home = Path(vitlet.__file__).resolve().parent
    check("site-packages" in home.parts, f"imported from {home}")
    check(Path(_C.__file__).parent == home, "the extension lies in the package")
    for name in (
        "py.typed",
        "_C.pyi",
        "export/__init__.py",
        "partition/__init__.py",
        "apps/cli.py",
    ):
        check((home / name).is_file(), f"{name} is there")
    for name in ("export", "partition", "apps"):
        check(not (home / name).is_symlink(), f"{name} is a folder")
    check(len(vitlet.list_models()) >= 15, f"{len(vitlet.list_models())} models listed")

    image = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    same = _C.resize_crop(image, (12, 10), (0, 0, 12, 10))
    check(bool((np.asarray(same) == image).all()), f"C++ core works ({_C.active_isa()})")
    from vitlet.paths import ort_library

    check(ort_library() is not None, "the library for ONNX Runtime is there")
    check("torch" not in sys.modules, "torch was not imported")


def check_plain_command_line() -> None:
    run = command("models")
    check(run.returncode == 5, f"`vitlet` without extras exits with 5, got {run.returncode}")
    check('pip install "vitlet[runtime]"' in run.stderr, f"and says what to do: {run.stderr!r}")
    check("Traceback" not in run.stderr, "without a traceback")


def check_runtime(bundle: str | None, image: str | None) -> None:
    import vitlet

    tokens = vitlet.tokenize(["a photo of a cat"])
    check(tokens.shape == (1, 77) and tokens[0, 0] == 49406, "the tokenizer works")
    run = command("models", "--json")
    check(run.returncode == 0, f"`vitlet models --json` works {run.stderr}")
    check(len(json.loads(run.stdout)) > 0, "and prints JSON")
    if bundle is None or image is None:
        return
    session = vitlet.load(bundle)
    guess = session.predict(image, topk=1)[0][0]
    check(0 < guess.score <= 1, f"predicted {guess.label} with {guess.score:.2f}")
    run = command("predict", bundle, image, "--json")
    check(run.returncode == 0 and guess.label in run.stdout, f"so does the shell {run.stderr}")


if __name__ == "__main__":
    check_package()
    if importlib.util.find_spec("onnxruntime") is None:
        check_plain_command_line()
    else:
        check_runtime(*(sys.argv[1:3] or (None, None)))
