"""vitlet: vision transformers on small devices.

Names are imported when first used, so that `import vitlet` costs nothing and never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlet.compress.profile import profile
    from vitlet.compress.reparameterize import reparameterize
    from vitlet.data.tokenizer import tokenize
    from vitlet.export.api import export
    from vitlet.export.verify import verify
    from vitlet.models.registry import create_model, list_models, model_info
    from vitlet.runtime.session import load

__version__ = "0.1.0"
__all__ = [
    "create_model",
    "export",
    "list_models",
    "load",
    "model_info",
    "profile",
    "reparameterize",
    "tokenize",
    "verify",
]

_HOMES = {
    "create_model": "vitlet.models.registry",
    "list_models": "vitlet.models.registry",
    "model_info": "vitlet.models.registry",
    "profile": "vitlet.compress.profile",
    "reparameterize": "vitlet.compress.reparameterize",
    "tokenize": "vitlet.data.tokenizer",
    "verify": "vitlet.export.verify",
    "load": "vitlet.runtime.session",
}
_PACKAGES = (
    "apps",
    "compress",
    "data",
    "errors",
    "export",
    "layers",
    "models",
    "ops",
    "partition",
    "runtime",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _PACKAGES:  # vitlet.export is a package that can be called: see its __init__
        return importlib.import_module(f"vitlet.{name}")
    raise AttributeError(f"module 'vitlet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_PACKAGES])
