"""Finds the operations of a Core ML program that must be held in float32 for float16 to be enough.

The program is converted once in float32 and executed with chosen operations computed as float16
would (`vitlet.export.half_trial`), so a set of operations to hold costs an execution to try, not a
conversion. What was found is then exported, executed as it stands, and enlarged if need be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.cases import Case, read_cases
from vitlet.export.compare import best_agree, compare, differences
from vitlet.export.coreml import export_coreml, for_pictures, wrapper
from vitlet.export.coreml_half import module_of, modules_of
from vitlet.export.half_trial import Compute, Kept, Trial, all_finite, possible, within
from vitlet.export.options import Options
from vitlet.export.targets import Batch, batch_range
from vitlet.export.tolerance import Tolerance, tolerance_for
from vitlet.export.trace import Graph, trace
from vitlet.layers.spelled_out import spell_out
from vitlet.runtime.coreml import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools
from vitlet.runtime.progress import Progress, null_progress

Array = NDArray[Any]
_ROUNDS = 4  # of exporting, when the program does worse than the trial


@dataclass(frozen=True)
class Figures:
    """What a program does on the cases, worst over them.

    Attributes:
        passed: whether the tolerance is met and nothing overflows.
        cosine: with the source's output.
        relative: largest difference over the largest output.
        snr_db: of the output.
        overflows: operations that turn finite values into infinite ones.
        megabytes: of the package; 0 for a trial.
    """

    passed: bool
    cosine: float
    relative: float
    snr_db: float
    overflows: int
    megabytes: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What is held, and the trade.

    Attributes:
        kept: in the program's order.
        before: of the program that holds nothing.
        after: of the program that holds `kept`.
        operations: how many operations could compute in float16; 0 if nothing had to be held.
        runs: how often the program was executed on a case to find out.
    """

    kept: tuple[Kept, ...]
    before: Figures
    after: Figures
    operations: int = 0
    runs: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The operations' names, as `export_coreml` takes them."""
        return tuple(entry.name for entry in self.kept)

    def to_json(self, head: str = "") -> dict[str, Any]:
        """Return what the manifest keeps; `head` goes before every name."""
        kept = [asdict(entry) for entry in self.kept]
        for entry in kept:
            entry.update(name=head + entry["name"], layer=head + entry["layer"])
        return {"asked": "auto", **asdict(self), "kept": kept}


def choose_fp32(
    graph: Graph,
    cases: Sequence[Case],
    preprocess: Preprocess | None,
    limits: Tolerance,
    *,
    picture: bool = False,
    ios: int = 16,
    batch: Batch = 1,
    progress: Progress | None = None,
) -> Decision:
    """Find what must be held in float32 so that a float16 program meets a tolerance.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        cases: inputs with the source's outputs.
        preprocess: how pictures become the graph's floats.
        limits: to meet.
        picture: whether the program will have an image input.
        ios: deployment target.
        batch: of the program.
        progress: told of each step.

    Raises:
        UnsupportedError: the tolerance is missed even with every operation in float32.
    """
    step = progress or null_progress
    usable = [case for case in cases if case.is_pixels or not picture]
    graph = replace(graph, module=spell_out(graph.module))
    source = for_pictures(graph, preprocess) if picture and preprocess is not None else graph
    divided = source is not graph
    feeds = [_feed(case, preprocess, divided, batch_range(batch)[0]) for case in usable]
    settings: dict[str, Any] = {"ios": ios, "batch": batch}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with step(f"find what {graph.name} needs in float32"):
            half = folder / "half.mlpackage"
            export_coreml(source, half, precision="fp16", **settings)
            before = _real(half, usable, feeds, limits, graph.name)
            if before.passed:
                return Decision((), before, before)
            exact = folder / "exact.mlpackage"
            export_coreml(source, exact, precision="fp32", **settings)
            trial = Trial(exact, half, usable, feeds, limits)
            keep = trial.search()
            for attempt in range(_ROUNDS):
                path = folder / f"{attempt}.mlpackage"
                export_coreml(source, path, keep_fp32=sorted(keep), **settings)
                after = _real(path, usable, feeds, limits, graph.name)
                if after.passed:
                    break
                keep = trial.more(keep)
            else:
                raise UnsupportedError(
                    f"keep_fp32='auto' held {len(keep)} operations of graph {graph.name!r} and "
                    f"the program still misses the tolerance (cosine {after.cosine:.6f}): export "
                    "with precision fp32"
                )
    with quiet_coremltools():
        modules = modules_of(
            trace(source, batch).run_decompositions({}),
            wrapper(source.module),
            source.outputs[0].name,
        )
    kept = tuple(
        replace(entry, layer=module_of(entry.name, modules)) for entry in trial.facts(keep)
    )
    return Decision(kept, before, after, len(trial.candidates), trial.runs)


class Keeper:
    """What each graph of an export holds in float32.

    Args:
        options: of the export.
        preprocess: of the model's pictures.
        golden: the cases, as `vitlet.export.cases.read_cases` takes them.
        graphs: of the export.
        limits: that replace the tolerance table's.
        progress: told of each step.

    Raises:
        UsageError: a name belongs to no graph.
    """

    def __init__(
        self,
        options: Options,
        preprocess: Preprocess,
        golden: Mapping[str, Array],
        graphs: Sequence[Graph],
        limits: Mapping[str, float] | None,
        progress: Progress,
    ) -> None:
        self._options, self._preprocess, self._progress = options, preprocess, progress
        self._cases = read_cases(golden)
        self._limits = tolerance_for("coreml", "fp16", dict(limits or {}))
        # Modules of a CLIP-style model start with "image_tower." or "text_tower.".
        self._heads = {g.name: "" if g.name == "model" else f"{g.name}_tower." for g in graphs}
        lost = [
            name
            for name in self._options.keep_fp32
            if options.keep_fp32 != "auto"
            and not any(name.startswith(head) for head in self._heads.values())
        ]
        if lost:
            raise UsageError(
                f"keep_fp32 names {', '.join(lost)}: in a model of several graphs names start with "
                f"{' or '.join(self._heads.values())}"
            )

    def of(self, graph: Graph) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the names that `export_coreml` takes, and details for the manifest."""
        head = self._heads[graph.name]
        asked = self._options.keep_fp32
        if asked != "auto":
            names = tuple(n.removeprefix(head) for n in asked if n.startswith(head))
            return names, {"keep_fp32": {"asked": [head + name for name in names]}}
        decision = choose_fp32(
            graph,
            self._cases[graph.name],
            self._preprocess,
            self._limits,
            picture=graph.name != "text" and self._options.preprocess["coreml"] == "image-type",
            ios=self._options.ios,
            batch=self._options.batch,
            progress=self._progress,
        )
        return decision.names, {"keep_fp32": decision.to_json(head)}


def _feed(case: Case, preprocess: Preprocess | None, divided: bool, batch: int) -> Array:
    values = case.floats(preprocess)
    if values.dtype.kind == "i":
        values = values.astype(np.int32)
    if divided and preprocess is not None:  # the graph itself divides by each channel's std
        values = values * np.asarray(preprocess.std, np.float32).reshape(1, -1, 1, 1)
    return np.repeat(values, batch, axis=0)


def _real(
    path: Path, cases: Sequence[Case], feeds: Sequence[Array], limits: Tolerance, graph: str
) -> Figures:
    """Execute a program as it is, rounding what it declares float16."""
    executor = CoreMLExecutor(path, "declared")
    (given,), (taken,) = executor.inputs, executor.outputs
    outputs, over = [], set()
    for case, feed in zip(cases, feeds, strict=True):
        watched: list[str] = []

        def intercept(
            name: str,
            args: dict[str, Any],
            compute: Compute,
            watched: list[str] = watched,
        ) -> tuple[Any, ...]:
            results = compute(args)
            if all_finite([*args.values()]) and not all_finite(results):
                watched.append(name)
            return results

        outputs.append(executor.run({given.name: feed}, intercept=intercept)[taken.name][:1])
        if possible(case):
            over.update(watched)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    figures = _judge(cases, outputs, limits, graph, len(over))
    return replace(figures, megabytes=round(size, 3))


def _judge(
    cases: Sequence[Case], outputs: Sequence[Array], limits: Tolerance, graph: str, overflows: int
) -> Figures:
    expected = np.concatenate([case.output for case in cases])
    actual = np.concatenate(outputs).astype(np.float32)
    found = compare(expected, actual)
    passed = not overflows and within(expected, actual, limits)
    if passed and graph == "model":
        agreed = best_agree(expected, actual, max(1e-5, limits.noise))
        passed = float(agreed.mean()) >= limits.top1
    if passed and (moved := differences(expected, actual)) is not None:
        floor = limits.noise / moved.spread if moved.spread > 0 else 1e9
        passed = moved.error <= max(limits.diff, floor)
    return Figures(passed, found.cosine, found.relative, found.snr_db, overflows)
