"""Does every model of the zoo, as a Core ML program, compute what torch does?

    python benchmarks/coreml_zoo.py [--only deit_tiny,casvit_xs] [--precisions fp32,int8] [--again]

Exports both towers of every model with made-up weights that answer to their input, executes the
programs with `vitlet.runtime.CoreMLExecutor` and compares with torch: with the model, and for
weights of 8 bits or fewer also with the model on the weights that the program stores, which must
agree. Models come smallest first, one at a time; a tower that several models share is measured
once. Rows that docs/coreml-zoo.json has are kept; docs/coreml-zoo.md is written from it after every
row. Exit code 1 if a row misses its target.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import coremltools
import numpy as np
import torch

import vitlet
from vitlet.export.coreml import export_coreml
from vitlet.export.coreml_compress import compress
from vitlet.export.coreml_package import finish_package
from vitlet.export.coreml_program import read_program
from vitlet.export.stored_weights import run_on_stored_weights
from vitlet.export.trace import Graph, graphs, trace
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from made_up import fill, images, tokens  # noqa: E402 - the tests' weights

PRECISIONS = ("fp32", "fp16", "int8", "palette8")
JSON, PAGE = ROOT / "docs" / "coreml-zoo.json", ROOT / "docs" / "coreml-zoo.md"
TARGETS = {"fp32": 0.9999, "fp16": 0.999}  # the rest: 0.999 with the weights that are stored


@dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
        model: of the zoo.
        graph: "model", "image" or "text".
        precision: of the export.
        operations: in the program, constants aside.
        megabytes: of the package.
        cosine: between the outputs of the executor (mode "fp32") and of torch.
        declared: the same for mode "declared", where results are rounded as the program says.
        stored: as `cosine`, with torch on the weights that the program stores.
        relative: largest difference to torch over the largest output, mode "fp32"; from `stored`
            where that exists.
        repeats: whether a second run gave the same bits.
        source: hash of the source graph's tensors' names and shapes, and of its output.
    """

    model: str
    graph: str
    precision: str
    operations: int
    megabytes: float
    cosine: float
    declared: float
    stored: float | None
    relative: float
    repeats: bool
    source: str

    @property
    def reached(self) -> bool:
        """Whether the row reaches its target."""
        if self.precision in TARGETS:
            limit = TARGETS[self.precision]
            return self.repeats and min(self.cosine, self.declared) > limit
        return self.repeats and self.stored is not None and self.stored > 0.999


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine between two arrays, in float64."""
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def example(graph: Graph) -> torch.Tensor:
    """Return a made-up picture or row of tokens."""
    if graph.inputs[0].dtype == "int64":
        return tokens("zoo", 1)
    _, channels, size, _ = graph.inputs[0].shape
    return images("zoo", 1, int(size), int(channels))


def fingerprint(graph: Graph, output: np.ndarray) -> str:
    """Return what only equal graphs share: made-up weights follow from names and shapes."""
    held = [(name, tuple(value.shape)) for name, value in graph.module.state_dict().items()]
    return hashlib.sha256(repr(held).encode() + output.tobytes()).hexdigest()[:16]


def export(graph: Graph, precision: str, folder: Path) -> Path:
    """Write a program; compressed ones are made from the float16 one, as `vitlet.export` does."""
    path = folder / f"{precision}.mlpackage"
    if precision in TARGETS:
        export_coreml(graph, path, precision=precision)
        return path
    half = folder / "fp16.mlpackage"
    if not half.exists():
        export_coreml(graph, half, precision="fp16")
    with quiet_coremltools():
        model = coremltools.models.MLModel(str(half), skip_model_load=True)
        finish_package(compress(model, precision, "uniform")[0], path)
    return path


def measure(name: str, graph: Graph, precision: str, folder: Path, rows: list[Row]) -> Row:
    """Export, execute and compare one graph, unless another model has it too."""
    value = example(graph)
    with torch.no_grad():
        expected = graph.module(value).numpy()
    source = fingerprint(graph, expected)
    for row in rows:
        if (row.source, row.graph, row.precision) == (source, graph.name, precision):
            return replace(row, model=name)
    path = export(graph, precision, folder)
    executor = CoreMLExecutor(path)
    feature = executor.inputs[0]
    feeds = {feature.name: value.numpy().astype(feature.dtype)}
    (actual,) = executor.run(feeds).values()
    (again,) = executor.run(feeds).values()
    del executor
    (rounded,) = CoreMLExecutor(path, "declared").run(feeds).values()
    program = read_program(path)
    stored, wanted = None, expected
    if precision not in TARGETS:
        wanted = run_on_stored_weights(program, trace(graph, 1), value)
        stored = cosine(actual, wanted)
    return Row(
        name,
        graph.name,
        precision,
        len(program.operations),
        round(sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6, 2),
        cosine(actual, expected),
        cosine(rounded, expected),
        stored,
        float(np.abs(actual - wanted).max() / np.abs(wanted).max()),
        actual.tobytes() == again.tobytes(),
        source,
    )


def page(rows: list[Row]) -> str:
    """Return the documentation's page."""
    head = f"""# Core ML round trips

Every model of the zoo as a Core ML program, computed by `vitlet.runtime.CoreMLExecutor` and
compared with torch. `python benchmarks/coreml_zoo.py` writes this page and `coreml-zoo.json` from
what it measured last (torch {torch.__version__}, coremltools {coremltools.__version__}). The
weights are made up, so that the output follows the input; palettes are evenly spaced. Targets: a
cosine over 0.9999 for fp32 and over 0.999 for fp16, in both modes; for fewer bits over 0.999 with
torch on the same weights ("stored"). How far those weights are from the model's own is the column
"fp32 mode".
"Error" is the largest difference to torch, over the largest output (for fewer bits, on the stored
weights). {sum(row.reached for row in rows)} of {len(rows)} programs reach their target, and
{sum(row.repeats for row in rows)} gave the same bits when they were run again.

| model | graph | precision | operations | MB | fp32 mode | declared | stored | error |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""
    lines = []
    for row in rows:
        stored = "" if row.stored is None else f"{row.stored:.7f}"
        lines.append(
            f"| {row.model} | {row.graph} | {row.precision} | {row.operations} "
            f"| {row.megabytes:.1f} | {row.cosine:.7f} | {row.declared:.7f} | {stored} "
            f"| {row.relative:.0e}{'' if row.reached else ' (missed)'} |\n"
        )
    return head + "".join(lines)


def key(row: Row) -> tuple[str, str, str]:
    """Return what names a row."""
    return row.model, row.graph, row.precision


def places(row: Row) -> tuple[str, int]:
    """Return where a row stands among its model's."""
    return row.graph, [*PRECISIONS, row.precision].index(row.precision)


def write(rows: list[Row]) -> None:
    """Write both files."""
    JSON.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    PAGE.write_text(page(rows), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", metavar="NAMES", help="models, with commas")
    parser.add_argument("--precisions", metavar="NAMES", default=",".join(PRECISIONS))
    parser.add_argument("--again", action="store_true", help="measure rows that are there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [Row(**row) for row in json.loads(JSON.read_text("utf-8"))] if JSON.exists() else []
    order = sorted(vitlet.list_models(), key=lambda name: vitlet.model_info(name).params)
    wanted = options.only.split(",") if options.only else order
    for name in [name for name in order if name in wanted]:
        precisions = options.precisions.split(",")
        if not options.again:
            towers = 2 if name.startswith("mobileclip") else 1
            done = [row.precision for row in rows if row.model == name]
            precisions = [entry for entry in precisions if done.count(entry) < towers]
        if not precisions:
            continue
        model = vitlet.reparameterize(fill(vitlet.create_model(name)))
        for graph in graphs(model):
            with tempfile.TemporaryDirectory() as folder:
                for precision in precisions:
                    started = time.monotonic()
                    known = [] if options.again else rows
                    row = measure(name, graph, precision, Path(folder), known)
                    rows = [r for r in rows if key(r) != key(row)] + [row]
                    rows.sort(key=lambda r: (order.index(r.model), *places(r)))
                    write(rows)
                    print(row, f"{time.monotonic() - started:.1f} s", flush=True)
                    gc.collect()
        del model, graph
        gc.collect()
    if not all(row.reached for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
