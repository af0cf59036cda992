"""The evidence of `benchmarks/partition.py` as text; what was not run is left blank."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Get = Callable[[str], dict[str, Any] | None]
SEEDS = (0, 1, 2)


def lines(get: Get) -> list[str]:
    """Return the table, then the comparisons."""
    full, times = get("base"), get("latencies") or {}
    if full is None:
        return ["nothing has been run yet"]
    text = [
        f"full model: {100 * full['accuracy']:.2f} %, {full['params']:,} parameters, "
        f"{full['bytes']:,} bytes compiled, {1e3 * full['latency']:.3f} ms",
        "",
        f"{'N':>3} {'accuracy':>9} {'below full':>10} {'worst lost':>10} {'falls/share':>11} "
        f"{'bytes':>9} {'smaller':>8} {'faster':>7}  goal",
    ]
    for devices, goal in ((2, 1.0), (3, 1.0), (5, 1.0), (10, 2.0)):
        text.append(_split_line(devices, goal, get(f"n{devices}-s0"), full, times))
    text += ["", *_seeds(get, full), "", "at N = 5, per device:"]
    for name, what in (
        ("n5-s0", "split, class-wise pruning"),
        ("uniform-n5-s0", "split, uniform pruning"),
        ("magnitude-n5-s0", "split, magnitude pruning"),
        ("scratch-n5-s0", "split, random weights instead of pruned"),
        ("confusable-n5-s0", "split, confusable classes together"),
        ("heads-only-n5-s0", "split, heads only pruned"),
        ("small-n5", "one small ViT from scratch, bytes of one device"),
        ("small-total-n5", "one small ViT from scratch, bytes of all devices"),
        ("ensemble-n5", "five small ViTs from scratch, averaged"),
    ):
        row = get(name)
        known = f"{100 * row['accuracy']:6.2f} %  {row['params']:>9,} parameters" if row else ""
        text.append(f"  {what:<50} {known}".rstrip())
    return [*text, "", *_plan(get), *_deit(get)]


def _split_line(
    devices: int, goal: float, row: dict[str, Any] | None, full: dict[str, Any],
    times: dict[str, Any],
) -> str:  # fmt: skip
    said = f"within {goal:g} points"
    if row is None:
        return f"{devices:>3} {'':>70}  {said}"
    below = 100 * (full["accuracy"] - row["accuracy"])
    # How much more is lost than the pictures of the classes of the lost device: test classes are
    # equally frequent.
    total = len(row["recall"])
    falls = [
        (row["accuracy"] - accuracy) / (len(classes) / total)
        for accuracy, classes in zip(row["one_lost"], row["classes"], strict=True)
    ]
    text = (
        f"{devices:>3} {100 * row['accuracy']:>7.2f} % {below:>10.2f} "
        f"{100 * min(row['one_lost']):>8.2f} % {max(falls):>11.2f} "
    )
    measured = times.get(str(devices))
    if measured is None:
        return f"{text} {'':>25}  {said}"
    smaller = times["full"]["bytes"] / measured["bytes"]
    return (
        f"{text}{measured['bytes']:>9,} {smaller:>7.1f}x {measured['times_faster']:>6.1f}x  {said}"
    )


def _seeds(get: Get, full: dict[str, Any]) -> list[str]:
    text = []
    for kind, prefix in (("class-wise", "n5"), ("uniform", "uniform-n5")):
        rows = [row for seed in SEEDS if (row := get(f"{prefix}-s{seed}")) is not None]
        if not rows:
            continue
        values = [100 * row["accuracy"] for row in rows]
        spread = f", deviation {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        below = 100 * full["accuracy"] - statistics.fmean(values)
        text.append(
            f"N = 5, {kind}: mean {statistics.fmean(values):.2f} % over {len(values)} of "
            f"{len(SEEDS)} seeds{spread}; {below:.2f} points below the full model"
        )
    return text


def _plan(get: Get) -> list[str]:
    row = get("plan")
    if row is None:
        return []
    return [
        f"the exported plan, run by ONNX Runtime: {100 * row['accuracy']:.2f} %, in torch "
        f"{100 * row['accuracy_torch']:.2f} %; all devices together {row['total']['bytes']:,} bytes"
    ]


def _deit(get: Get) -> list[str]:
    row = get("deit_base")
    if row is None:
        return []
    return [
        f"DeiT-Base for ten devices: planned and cut in {row['seconds']:.1f} s; per device "
        f"{row['size_ratio']:.1f}x smaller, {row['macs_ratio']:.1f}x fewer MACs "
        f"({row['same_layout_macs_ratio']:.1f}x with every token computed to the end)"
    ]
