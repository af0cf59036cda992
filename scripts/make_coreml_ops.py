"""Writes docs/coreml-ops.md: which operations of Core ML's MIL the executor computes.

python scripts/make_coreml_ops.py
"""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).parents[1] / "docs" / "coreml-ops.md"


def main() -> None:
    """Write the page."""
    from vitlet.runtime.coreml.coverage import table

    FILE.write_text(table(), "utf-8")


if __name__ == "__main__":
    main()
