"""An evaluation in words and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitlet.partition.evaluate import Evaluation
    from vitlet.partition.submodels.judge import Case

_MOST = 6  # classes and cases that are written out


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def evaluation_table(evaluation: Evaluation) -> str:
    """Return accuracies, then recall, then sizes and latencies for each device and in total."""
    parts = [columns(_accuracies(evaluation)), columns(_recalls(evaluation))]
    parts.append(columns(_devices(evaluation)))
    parts.append(
        "latency: one image in ONNX Runtime, one thread of this machine; without the network"
    )
    return "\n\n".join(parts)


def comparison_table(evaluations: Sequence[Evaluation]) -> str:
    """Return several plans side by side, by their number of devices."""
    rows = [["devices", "accuracy", "worst device lost", "largest device", "slowest", "in total"]]
    for one in sorted(evaluations, key=lambda one: len(one.devices)):
        lost = [case.accuracy for case in one.judgement.one_lost]
        rows.append(
            [
                str(len(one.devices)), percent(one.judgement.whole.accuracy),
                percent(min(lost)) if lost else "-", f"{one.largest_bytes:,}",
                milliseconds(one.slowest_latency), f"{one.total_bytes:,}",
            ]
        )  # fmt: skip
    return columns(rows)


def _accuracies(evaluation: Evaluation) -> list[list[str]]:
    judgement, full = evaluation.judgement, evaluation.full
    rows = [["", "accuracy", "of covered classes", "pictures nobody covers"]]
    if full is not None:
        rows.append(["full model", percent(full["accuracy"]), "", ""])
    rows.append(_case(evaluation, judgement.whole, "split"))
    worst_first = sorted(judgement.one_lost, key=lambda case: case.accuracy)
    rows += [_case(evaluation, case, f"without {case.lost[0]}") for case in worst_first[:_MOST]]
    if judgement.two_lost:
        by_accuracy = sorted(judgement.two_lost, key=lambda case: case.accuracy)
        for word, case in (("worst", by_accuracy[0]), ("best", by_accuracy[-1])):
            rows.append(_case(evaluation, case, f"{word} pair lost: {' and '.join(case.lost)}"))
    return rows


def _case(evaluation: Evaluation, case: Case, name: str) -> list[str]:
    lost = evaluation.lost_share(case)
    return [name, percent(case.accuracy), percent(case.accuracy_covered), percent(lost)]


def _recalls(evaluation: Evaluation) -> list[list[str]]:
    recall, full = evaluation.judgement.recall, evaluation.full
    known = [c for c, share in enumerate(recall) if share == share]  # not NaN: it has pictures
    worst = sorted(known, key=lambda c: recall[c])[:_MOST]
    rows = [["recall, lowest first", "split", "full"]]
    for c in worst:
        rows.append(
            [evaluation.labels[c], percent(recall[c]), percent(full["recall"][c]) if full else "-"]
        )
    return rows


def _devices(evaluation: Evaluation) -> list[list[str]]:
    rows = [["device", "slots", "bytes", "stored", "MACs", "latency"]]
    for device in evaluation.devices:
        slots = ",".join(map(str, device.slots)) or "replica"
        rows.append(
            [
                device.name, slots, f"{device.bytes:,}", f"{device.stored:,}",
                f"{device.macs:,}", milliseconds(device.latency),
            ]
        )  # fmt: skip
    rows.append(
        ["fusion", "", f"{evaluation.fusion_bytes:,}", f"{evaluation.fusion_bytes:,}", "",
         milliseconds(evaluation.fusion_latency)]
    )  # fmt: skip
    rows.append(["in total", "", "", f"{evaluation.total_bytes:,}", "", ""])
    full = evaluation.full
    if full is not None:
        rows.append(["full model", "", f"{full['bytes']:,}", f"{full['bytes']:,}", "",
                     milliseconds(full["latency"])])  # fmt: skip
        rows.append(
            ["full / largest device", "", f"{full['bytes'] / evaluation.largest_bytes:.1f}x", "",
             "", f"{full['latency'] / evaluation.slowest_latency:.1f}x"]
        )  # fmt: skip
        together = f"{full['bytes'] / evaluation.total_bytes:.2f}x"
        rows.append(["full / all together", "", "", together, "", ""])
    return rows


def percent(share: float) -> str:
    """Return "91.24 %"."""
    return f"{100 * share:.2f} %"


def milliseconds(seconds: float) -> str:
    """Return "0.123 ms"."""
    return f"{1e3 * seconds:.3f} ms"
