"""Takes one compiled file or bundle for the truth of another: ONNX, TVM and Core ML in any pairing.

Both run on the same inputs: the golden ones if either is a bundle, made-up ones otherwise. A Core
ML picture says itself how its pixels become floats; of an ONNX file that normalizes inside only its
bundle knows. A Core ML program counts as what it means: float32 on the stored weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError, VerificationError
from vitlet.export.cases import Case, read_cases
from vitlet.export.execute import runs_here
from vitlet.export.feed import feed, gives_probabilities
from vitlet.export.foreign import read_file
from vitlet.export.inputs import image_inputs, token_inputs
from vitlet.export.pairing import Step
from vitlet.export.tolerance import tolerance_for
from vitlet.export.traces import artifact_steps
from vitlet.export.truth import Truth
from vitlet.runtime.batching import BatchSizes, run_batched
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.engine import Engine
from vitlet.runtime.manifest import TARGETS, Artifact, Manifest, TensorSpec
from vitlet.runtime.safetensors import load_file
from vitlet.runtime.select import open_engine

_COARSE = ("fp32", "fp16", "bf16", "int8", "palette8", "palette6", "palette4")  # finest first
_CONTEXT = 77


@dataclass(frozen=True)
class Side:
    """A compiled file or bundle.

    Attributes:
        path: of it.
        folder: where the files of `artifacts` lie.
        artifacts: one entry per graph, with all its outputs.
        manifest: of a bundle.
    """

    path: Path
    folder: Path
    artifacts: tuple[Artifact, ...]
    manifest: Manifest | None


@dataclass(frozen=True)
class Reference:
    """The files that answer, for a look inside them.

    Attributes:
        folder: where they lie.
        artifacts: graph of the other side -> the one that answers for it.
        preprocess: how pictures become floats.
    """

    folder: Path
    artifacts: dict[str, Artifact]
    preprocess: Preprocess | None

    def steps(self, graph: str, case: Case) -> list[Step]:
        """Return every tensor of the file that answers for a graph; none if it takes no such case.

        Raises:
            CorruptInputError: it cannot be run.
        """
        artifact = self.artifacts[graph]
        given = feed(case, artifact, Truth("", {}, self.preprocess))
        if given is None:
            return []
        low = BatchSizes.of(artifact.inputs, artifact).low
        feeds = {artifact.inputs[0].name: given.repeat(low, axis=0)}
        return artifact_steps(self.folder / artifact.file, artifact, feeds, "fp32")


def against_file(
    subject: Path, other: Path, images: list[Path] | None = None
) -> tuple[Truth, list[Artifact], Path]:
    """Return the truth that `other` gives, and what of `subject` to compare with it, and where.

    Raises:
        UsageError: they take different inputs or give different outputs; both are spelled out.
        VerificationError: `other` gives values that are not finite for a real or random input.
    """
    ours, theirs = _open(subject), _open(other)
    preprocess = _preprocess(ours, theirs)
    cases: dict[str, list[Case]] = {}
    chosen: list[Artifact] = []
    answering: dict[str, Artifact] = {}
    for mine in ours.artifacts:
        partner = next((a for a in theirs.artifacts if _fits(mine, a)), None)
        if partner is None:
            continue
        if {mine.preprocess != "none", partner.preprocess != "none"} == {True, False}:
            _need(preprocess, mine, partner)
        stored = _inputs(mine, partner, ours, theirs, preprocess, images)
        for mine_one, partner_one in _outputs(mine, partner):
            answering[mine_one.graph] = partner_one
            cases[mine_one.graph] = _answers(theirs, partner_one, mine_one, stored, preprocess)
            chosen.append(mine_one)
    if not chosen:
        raise UsageError(
            f"{subject.name} takes {_spell(ours)}, {other.name} takes {_spell(theirs)}: they "
            "cannot be fed with the same inputs"
        )
    reference = Reference(theirs.folder, answering, preprocess)
    labels = ours.manifest.labels if ours.manifest else None
    truth = Truth(other.name, {}, preprocess, labels=labels, cases=cases, reference=reference)
    return truth, chosen, ours.folder


def common_limits(artifact: Artifact, reference: Artifact) -> dict[str, Any]:
    """Return the limits of the coarser of two precisions, as overrides of the table's."""
    ranks = {precision: rank for rank, precision in enumerate(_COARSE)}
    coarser = max(artifact, reference, key=lambda a: ranks.get(a.precision, len(ranks)))
    return asdict(tolerance_for(coarser.target, coarser.precision))


def _open(path: Path) -> Side:
    if path.is_dir() and path.suffix != ".mlpackage":
        bundle = open_bundle(path)
        order = sorted(bundle.manifest.artifacts, key=lambda a: TARGETS.index(a.target))
        usable = [artifact for artifact in order if not runs_here(artifact)]
        return Side(path, bundle.path, tuple(usable), bundle.manifest)
    return Side(path, path.parent, (read_file(path),), None)


def _spell(side: Side) -> str:
    specs = [f"{s.name} {s.dtype} {s.shape}" for a in side.artifacts for s in a.inputs]
    return " or ".join(dict.fromkeys(specs)) or "nothing that runs here"


def _shape(artifact: Artifact) -> tuple[int | str, ...]:
    """Return the sizes of one input without the batch; of a picture as (C, H, W)."""
    shape = artifact.inputs[0].shape[1:]
    return shape if artifact.preprocess == "none" else (shape[-1], *shape[:-1])


def _fits(one: Artifact, other: Artifact) -> bool:
    kinds = {a.inputs[0].dtype.startswith("int") for a in (one, other)}
    shapes = _shape(one), _shape(other)
    same = len(shapes[0]) == len(shapes[1]) and all(
        isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(*shapes, strict=True)
    )
    known = {"image", "text"}
    graphs = {one.graph, other.graph}
    return len(kinds) == 1 and same and not (graphs <= known and len(graphs) == 2)


def _preprocess(ours: Side, theirs: Side) -> Preprocess | None:
    """Return how pixels become floats, from a manifest or a Core ML program; None if unknown."""
    for side in (ours, theirs):
        if side.manifest is not None:
            return side.manifest.preprocess
    for side in (ours, theirs):
        for artifact in side.artifacts:
            if artifact.target == "coreml" and artifact.preprocess == "image-type":
                from vitlet.export.coreml_program import read_program

                affine = read_program(side.folder / artifact.file).affine
                if affine is not None:
                    scale, shift = affine
                    return _plain(artifact, -shift / scale / 255, 1 / (scale * 255))
    for side in (ours, theirs):
        for artifact in side.artifacts:
            channels, *sizes = _shape(artifact)
            fixed = all(isinstance(size, int) for size in sizes) and len(sizes) == 2
            if fixed and channels in (1, 3):
                return _plain(artifact, np.zeros(int(channels)), np.ones(int(channels)))
    return None


def _plain(artifact: Artifact, mean: NDArray[Any], std: NDArray[Any]) -> Preprocess:
    _, height, width = (int(size) for size in _shape(artifact))
    numbers = [tuple(float(f"{value:.6g}") for value in values) for values in (mean, std)]
    return Preprocess(
        size=(height, width),
        resize_to=max(height, width),
        mean=numbers[0],
        std=numbers[1],
        mode="L" if len(mean) == 1 else "RGB",
    )


def _need(preprocess: Preprocess | None, mine: Artifact, partner: Artifact) -> None:
    """Refuse pixels against floats where nothing says how one becomes the other."""
    picture = mine if mine.preprocess != "none" else partner
    if picture.preprocess == "in-graph" and (preprocess is None or not picture.toolchain):
        other = partner if picture is mine else mine
        raise UsageError(
            f"{picture.file} takes pixels and {other.file} floats, and nothing says how the first "
            "normalizes them: give its bundle instead of the file"
        )


def _inputs(
    mine: Artifact,
    partner: Artifact,
    ours: Side,
    theirs: Side,
    preprocess: Preprocess | None,
    images: list[Path] | None,
) -> list[tuple[str, NDArray[Any]]]:
    for side, artifact in ((ours, mine), (theirs, partner)):
        if side.manifest is not None and side.manifest.golden and images is None:
            golden: dict[str, NDArray[Any]] = {}
            for name in dict.fromkeys(side.manifest.golden.values()):
                golden.update(load_file(side.folder / name))
            known = read_cases(golden).get(artifact.graph)
            if known:
                return [(case.name, case.stored) for case in known]
    return [*_made_up(mine, partner, preprocess, images)]


def _made_up(
    mine: Artifact, partner: Artifact, preprocess: Preprocess | None, images: list[Path] | None
) -> Iterator[tuple[str, NDArray[Any]]]:
    sizes = tuple(
        b if isinstance(a, str) else a for a, b in zip(_shape(mine), _shape(partner), strict=True)
    )
    free = [size for size in sizes if isinstance(size, str)]
    if free:
        raise UsageError(f"both take any {', '.join(free)}: nothing says which size to try")
    shape = tuple(int(size) for size in sizes)
    random = np.random.default_rng(0)
    if mine.inputs[0].dtype.startswith("int"):
        if shape == (_CONTEXT,):
            yield from token_inputs()
        else:
            for index in range(4):
                yield f"random_{index}", random.integers(0, 100, (1, *shape), dtype=np.int64)
    elif len(shape) == 3:
        yield from image_inputs(shape, preprocess, images)
    else:
        for index in range(4):
            yield f"random_{index}", random.standard_normal((1, *shape)).astype(np.float16)
        yield "zeros", np.zeros((1, *shape), np.float16)


def _outputs(mine: Artifact, partner: Artifact) -> list[tuple[Artifact, Artifact]]:
    """Pair the outputs: one alone, by name, or by order; each becomes an entry of its own."""
    left, right = mine.outputs, partner.outputs
    names = {spec.name for spec in left}
    if len(left) == len(right) == 1:
        pairs = [(left[0], right[0])]
    elif names & {spec.name for spec in right}:
        by_name = {spec.name: spec for spec in right}
        pairs = [(spec, by_name[spec.name]) for spec in left if spec.name in by_name]
    else:
        pairs = [*zip(left, right, strict=False)] if len(left) == len(right) else []
    wrong = [(a, b) for a, b in pairs if not _alike(a, b)]
    if wrong or not pairs:
        shown = [", ".join(f"{s.name} {s.shape}" for s in side) for side in (left, right)]
        raise UsageError(
            f"{mine.file} gives {shown[0]}, {partner.file} gives {shown[1]}: the outputs do not "
            "belong together"
        )
    if gives_probabilities(partner) and not gives_probabilities(mine):
        raise UsageError(
            f"{partner.file} gives probabilities and {mine.file} does not: compare them the other "
            "way round"
        )
    if gives_probabilities(mine) and gives_probabilities(partner):  # nothing to translate
        mine = replace(mine, details={**mine.details, "class_labels": False})
    graph = mine.graph if mine.graph != "model" or left[0].name != "embedding" else "embedding"
    several = len(pairs) > 1
    return [
        (
            replace(mine, graph=one.name if several else graph, outputs=(one,)),
            replace(partner, outputs=(other,)),
        )
        for one, other in pairs
    ]


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    # Core ML writes down no shape for some outputs; what comes out is compared anyway.
    return not (one.shape and other.shape) or len(one.shape) == len(other.shape)


def _answers(
    side: Side,
    artifact: Artifact,
    mine: Artifact,
    stored: Sequence[tuple[str, NDArray[Any]]],
    preprocess: Preprocess | None,
) -> list[Case]:
    """Run the truth on every input that both take."""
    engine = _engine(side.folder / artifact.file, artifact)
    sizes = BatchSizes.of(artifact.inputs, artifact)
    frame = Truth("", {}, preprocess)
    made: list[Case] = []
    for name, array in stored:
        case = Case(mine.graph, name, array, np.zeros((1, 0), np.float32))
        given = feed(case, artifact, frame)
        if given is None or feed(case, mine, frame) is None:
            continue
        outputs = run_batched(engine.run, sizes, {artifact.inputs[0].name: given})
        output = outputs[artifact.outputs[0].name].astype(np.float32).reshape(1, -1)
        if np.isfinite(output).all():
            made.append(replace(case, output=output))
        elif case.kind != "worst":
            raise VerificationError(
                f"{artifact.file} gives values that are not finite for {name}: it is no truth"
            )
    return made


def _engine(path: Path, artifact: Artifact) -> Engine:
    if artifact.target == "coreml":
        from vitlet.runtime.coreml.engine import CoreMLEngine

        return CoreMLEngine(path, artifact, "fp32")
    return open_engine("onnxruntime" if artifact.target == "onnx" else "tvm", path, artifact, 1)
