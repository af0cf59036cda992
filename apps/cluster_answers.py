"""What `vitlet run` prints: the answers about files, or about what a camera sees as they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from vitlet.apps.camera import Camera
from vitlet.apps.cluster_images import Outcome, outcomes
from vitlet.apps.output import Output
from vitlet.apps.units import percent, plural
from vitlet.apps.verbs.predict import short
from vitlet.errors import CorruptInputError, DeadlineError
from vitlet.partition.cluster.coordinator import Coordinator


def classify(
    out: Output, coordinator: Coordinator, paths: Iterable[Path], topk: int, window: int
) -> None:
    """Classify files and print what came of each.

    Args:
        out: prints the answers, and with `--json` one document in the end.
        coordinator: a started one.
        paths: of the images.
        topk: guesses per image.
        window: images under way at a time.

    Raises:
        DeadlineError: some had no answer in time.
        CorruptInputError: some could not be read.
    """
    done: list[Outcome] = []
    for outcome in outcomes(coordinator, ((str(path), path) for path in paths), window):
        done.append(outcome)
        if not out.json:
            _show(out, outcome, short(Path(outcome.name)), topk)
    entries = [_entry("file", outcome, topk) for outcome in done]
    result: dict[str, Any] = {
        "plan": coordinator.plan.hash,
        "images": [entry for entry in entries if "error" not in entry],
        "failed": [entry for entry in entries if "error" in entry],
        "status": coordinator.status(),
    }
    out.result(result, lambda: None)
    latency = coordinator.latency.to_json()
    degraded = sum(bool(o.answer and o.answer.degraded) for o in done)
    out.log(
        f"{plural(len(done), 'image')}, {degraded} degraded; "
        f"p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
    )
    late = [o for o in done if isinstance(o.error, DeadlineError)]
    bad = [o for o in done if o.error is not None and not isinstance(o.error, DeadlineError)]
    for outcome in (*late, *bad):
        out.warn(f"{outcome.name}: {outcome.error}")
    if late:
        raise DeadlineError(f"{plural(len(late), 'image')} of {len(done)} had no answer in time")
    if bad:
        raise CorruptInputError(f"{plural(len(bad), 'image')} of {len(done)} could not be read")


def watch(
    out: Output, coordinator: Coordinator, camera: Camera, topk: int, window: int, frames: int
) -> None:
    """Classify what a camera sees until it ends, `frames` are done, or the user interrupts.

    Args:
        out: prints an answer a line as they come, and with `--json` an object a line.
        coordinator: a started one.
        camera: an opened one.
        topk: guesses per frame.
        window: frames under way at a time.
        frames: after how many to stop; 0 for none.

    Raises:
        DeadlineError: the camera fell silent, or no frame had an answer in time.
    """
    counts = {"frames": 0, "degraded": 0, "late": 0}
    try:
        for outcome in outcomes(coordinator, _numbered(camera, frames), window):
            counts["frames"] += 1
            counts["degraded"] += bool(outcome.answer and outcome.answer.degraded)
            counts["late"] += outcome.answer is None
            if out.json:
                out.line(_entry("frame", outcome, topk))
            else:
                _show(out, outcome, f"frame {outcome.name}", topk)
    except KeyboardInterrupt:
        out.detail("interrupted")  # how one stops watching
    latency = coordinator.latency.to_json()
    out.log(
        f"{plural(counts['frames'], 'frame')}, {camera.passed_over} passed over, "
        f"{counts['degraded']} degraded, {counts['late']} without an answer; "
        f"p50 {latency['p50_ms']} ms, p99 {latency['p99_ms']} ms"
    )
    if counts["late"] and counts["late"] == counts["frames"]:
        raise DeadlineError(f"none of {plural(counts['late'], 'frame')} had an answer in time")


def _numbered(camera: Camera, frames: int) -> Iterator[tuple[str, Any]]:
    pictures = itertools.islice(camera.pictures(), frames or None)
    return ((str(number), picture) for number, picture in enumerate(pictures))


def _entry(kind: str, outcome: Outcome, topk: int) -> dict[str, Any]:
    name = int(outcome.name) if kind == "frame" else outcome.name
    if outcome.answer is None:
        return {kind: name, "error": str(outcome.error)}
    answer = outcome.answer.to_json(topk)
    (image,) = answer.pop("images")
    return {kind: name, **image, **answer}


def _show(out: Output, outcome: Outcome, name: str, topk: int) -> None:
    answer = outcome.answer
    if answer is None:
        out.print(Text.assemble(f"{name}  ", ("no answer", "red")))
        return
    covered = set(answer.covered_classes)
    line = Text(f"{name}  ")
    for place, guess in enumerate(answer.predictions(topk)[0]):
        mark = "" if guess.index in covered else "?"
        style = "bold" if place == 0 else "dim"
        line.append(f"{guess.label}{mark} {percent(guess.score)}  ", style=style)
    if answer.missing:
        absent = ", ".join(map(str, answer.missing))
        line.append(f"(degraded: slot {absent} missing)", style="yellow")
    out.print(line)
