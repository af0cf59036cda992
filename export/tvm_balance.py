"""Into how many parts work is cut, so that threads with equally many are busy equally long."""

from __future__ import annotations

_THREADS = (2, 4)
_PART = 0.02  # what a further part costs, in shares of the whole


def waste(items: int) -> float:
    """Return how much longer the slowest of a few threads takes than with equal shares."""
    return max(-(-items // threads) * threads / items for threads in _THREADS)


def parts(items: int, least: int, most: int) -> int:
    """Return into how many parts each of `items` pieces of work is cut.

    Args:
        items: pieces of equal work.
        least: parts to cut into.
        most: parts; not below `least`.
    """
    choices = range(least, min(most, least + 7) + 1)
    return min(choices, key=lambda n: waste(items * n) + _PART * (n - least))
