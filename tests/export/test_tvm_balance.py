from __future__ import annotations

import pytest

from vitlet.export.tvm_balance import parts, waste


@pytest.mark.parametrize("items", range(1, 40))
def test_two_and_four_threads_get_nearly_equal_shares(items: int) -> None:
    found = parts(items, 1, 8)
    assert 1 <= found <= 8
    assert waste(items * found) <= 1.15
    # No more parts than that takes.
    assert all(waste(items * n) > waste(items * found) for n in range(1, found))


def test_work_is_never_cut_into_fewer_or_more_parts_than_allowed() -> None:
    assert parts(3, 5, 5) == 5
    assert parts(3, 1, 1) == 1
    assert parts(7, 2, 3) in (2, 3)
    assert waste(8) == 1 and waste(3) == 4 / 3
