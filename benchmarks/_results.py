"""Results of a long benchmark, each kept in a file as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """One JSON file a result, in DIR/results."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "results"

    def get(self, name: str) -> Row | None:
        """Return a result that is there, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def once(self, name: str, make: Callable[[], Row]) -> Row:
        """Return a result that is there, or make and keep it."""
        row = self.get(name)
        if row is None:
            print(f"{name} ...", flush=True)
            row = make()
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f"{name}.part"
            part.write_text(json.dumps(row, indent=1) + "\n")
            part.replace(self.folder / f"{name}.json")
        shown = {k: v for k, v in row.items() if isinstance(v, int | float)}
        print(f"{name}: {shown}", flush=True)
        return row
