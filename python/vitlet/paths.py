"""Where the compiled parts of vitlet are."""

from __future__ import annotations

import sys
from pathlib import Path

from vitlet.ops.native import extension


def ort_library() -> Path | None:
    """Return the library of ONNX Runtime operators; None where it was not built."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    # Beside the extension: in an editable install the Python files are elsewhere.
    path = Path(str(extension.__file__)).parent / "lib" / f"libvitlet_ort.{suffix}"
    return path if path.is_file() else None
