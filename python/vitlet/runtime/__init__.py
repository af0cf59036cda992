"""Runs a bundle on a device, without torch; and Core ML programs anywhere, with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlet.runtime.coreml import CoreMLExecutor

__all__ = ["CoreMLExecutor"]


def __getattr__(name: str) -> Any:
    if name == "CoreMLExecutor":
        from vitlet.runtime.coreml import CoreMLExecutor

        return CoreMLExecutor
    raise AttributeError(f"module 'vitlet.runtime' has no attribute {name!r}")
