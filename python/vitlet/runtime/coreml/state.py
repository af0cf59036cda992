"""What a stateful program keeps between calls, such as a text decoder's keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import ShapeError


@dataclass
class Cell:
    """One state variable: a float32 tensor that operations read and replace."""

    value: Any


class State:
    """The state of one conversation with a stateful program; made by `CoreMLExecutor.make_state`.

    It starts as zeros. Pass the same object to every `run` that belongs together; it is not to be
    used by two threads at a time.
    """

    def __init__(self, cells: dict[str, Cell]) -> None:
        self.cells = cells

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a state variable, float32 or int32.

        Raises:
            ShapeError: there is none of that name.
        """
        return np.array(self._cell(name).value.numpy())

    def write(self, name: str, value: NDArray[Any]) -> None:
        """Replace a state variable.

        Raises:
            ShapeError: there is none of that name, or it has another shape.
        """
        cell = self._cell(name)
        if tuple(value.shape) != tuple(cell.value.shape):
            raise ShapeError(
                f"expected the state {name} of shape {tuple(cell.value.shape)}, got {value.shape}"
            )
        cell.value = cell.value.new_tensor(value)

    def _cell(self, name: str) -> Cell:
        if name not in self.cells:
            raise ShapeError(f"expected a state of {', '.join(self.cells) or 'none'}; got {name}")
        return self.cells[name]
