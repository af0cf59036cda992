"""What can be wrong with the numbers themselves: NaN, infinity, out of float16's range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.apps.readers.contents import Contents
from vitlet.apps.units import plural

FLOAT16_MAX = 65504.0
_SHOWN = 3


@dataclass
class ValueScan:
    """Collects the names of tensors whose values mean trouble."""

    not_finite: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)

    def look(self, name: str, array: NDArray[Any]) -> None:
        """Look at one tensor."""
        if array.dtype.kind != "f" or not array.size:
            return
        # max and min carry NaN on, so two passes without a temporary are enough.
        with np.errstate(invalid="ignore"):
            largest = max(abs(float(array.max())), abs(float(array.min())))
        if not np.isfinite(largest):
            self.not_finite.append(name)
        elif largest > FLOAT16_MAX and array.dtype != np.float16:
            self.too_large.append(name)

    def report(self, contents: Contents) -> None:
        """Add what was found to the risks."""
        if self.not_finite:
            contents.problem(
                f"{plural(len(self.not_finite), 'tensor')} with NaN or infinity: "
                f"{_names(self.not_finite)}"
            )
        if self.too_large:
            contents.problem(
                f"{plural(len(self.too_large), 'tensor')} beyond float16's {FLOAT16_MAX:.0f}, "
                f"infinite in fp16: {_names(self.too_large)}"
            )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
