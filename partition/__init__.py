"""Split a vision transformer by class over several devices, and run it there (ED-ViT).

"Efficient Partitioning Vision Transformer on Edge Devices for Distributed Inference" (2024),
arXiv 2410.11650. Names are imported when first used: the worker's side never needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlet.partition.devices import Device, read_devices
    from vitlet.partition.draft import Choices
    from vitlet.partition.plan import Plan, load_plan
    from vitlet.partition.splitting import split

__all__ = ["Choices", "Device", "Plan", "load_plan", "read_devices", "split"]

_HOMES = {
    "Choices": "vitlet.partition.draft",
    "Device": "vitlet.partition.devices",
    "Plan": "vitlet.partition.plan",
    "load_plan": "vitlet.partition.plan",
    "read_devices": "vitlet.partition.devices",
    "split": "vitlet.partition.splitting",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vitlet.partition' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
