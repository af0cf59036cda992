"""The compiled extension, imported where its errors can be turned into ours."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from vitlet.errors import UsageError

if TYPE_CHECKING:
    from vitlet import _C as extension
else:

    def _import() -> ModuleType:
        try:
            from vitlet import _C
        except ImportError as error:
            if "VITLET_ISA" not in str(error):
                raise
            raise UsageError(str(error)) from None
        return _C

    extension = _import()

__all__ = ["extension"]
