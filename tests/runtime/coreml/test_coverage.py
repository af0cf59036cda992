"""The page of operations says what the table of kernels has."""

from __future__ import annotations

from pathlib import Path

from vitlet.runtime.coreml.coverage import known_operations, missing, table
from vitlet.runtime.coreml.table import REFUSED, families

PAGE = Path(__file__).parents[3] / "docs" / "coreml-ops.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text("utf-8") == table(), "run scripts/make_coreml_ops.py"


def test_every_operation_is_computed_or_refused_on_purpose() -> None:
    assert missing() == []
    assert not set(families()) & set(REFUSED)
    assert set(families()) | set(REFUSED) <= set(known_operations())
