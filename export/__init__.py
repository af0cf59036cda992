"""Compile a model to ONNX, Core ML and TVM, and prove that the result is right.

The package itself can be called: ``vitlet.export(model, targets=("onnx",), out="m.vitlet")`` is
`vitlet.export.api.export`.
"""

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from vitlet.export.api import export

        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
