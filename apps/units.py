"""Numbers as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes: "812 B", "1.3 MB" (powers of 1000, as disks and app stores do)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def count(number: float) -> str:
    """Return a number of things: "812", "11.4 M" (parameters, multiply-accumulates)."""
    value = float(number)
    for unit in ("", " k", " M"):
        if value < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.2f} G"


def milliseconds(value: float) -> str:
    """Return a time given in milliseconds, with three significant digits: "0.412", "12.3"."""
    if value < 9.995:
        return f"{value:.3f}" if value < 0.9995 else f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def seconds(value: float) -> str:
    """Return a duration given in seconds: "0.4 s", "2 min 05 s"."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def percent(fraction: float) -> str:
    """Return a fraction as "91.5 %"."""
    return f"{100 * fraction:.1f} %"


def plural(number: int, noun: str) -> str:
    """Return "1 image" or "3 images"; nouns ending in "s", "x" or "ch" take "es"."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number} {noun}{ending}"
