"""What a verification found, as plain data: one `Report` with a row per artefact.

As JSON (`Report.to_json`)::

    {"subject": "x.vitlet", "against": "golden.safetensors", "passed": true,
     "environment": {"vitlet": "0.1.0", "onnxruntime": "1.32.0"},
     "artifacts": [{"target": "onnx", "graph": "image", "file": "image.onnx", "precision": "fp32",
       "status": "passed", "method": "executed", "engine": "onnxruntime 1.32.0",
       "figures": {"cosine": 1.0, "max_abs": 1e-7, "relative": 3e-7, "snr_db": 130.0, "top1": 1.0},
       "reasons": [], "warnings": [], "checks": [], "tolerance": {"cosine": 0.99999},
       "cases": [{"name": "real_0", "batch": 1, "cosine": 1.0, "passed": true}],
       "first_bad": null, "layers": [], "layers_case": ""}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vitlet.errors import CorruptInputError

Status = Literal["passed", "failed", "not run"]
EXECUTED = "executed"
INSPECTED = "program inspected, not executed"
NOT_RUN = "not run"
LIMITS = (
    "Executed by vitlet's own executor on this machine's CPU; the arithmetic of a Neural Engine or "
    "a GPU is not simulated: `vitlet export --xctest` writes the test that runs it there."
)


@dataclass(frozen=True)
class CaseResult:
    """One input, or two at batch 2: the figures of `vitlet.export.compare.Metrics`.

    Attributes:
        name: of the golden case; two names joined by "+" at batch 2.
        batch: rows that went in at once.
        top1: whether the best class agrees; None where there are no classes.
        passed: within the tolerance.
        expected: the source's best guesses (label, probability), best first, where it has any.
        actual: the artefact's.
    """

    name: str
    batch: int
    cosine: float
    max_abs: float
    relative: float
    snr_db: float
    nonfinite: int
    top1: bool | None
    passed: bool
    expected: tuple[tuple[str, float], ...] = ()
    actual: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Check:
    """One thing that was looked at without running the artefact."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class FirstBad:
    """The earliest layer whose output is nowhere in the artefact, nor is anything after it.

    Attributes:
        module: path of the torch module, such as "network.2.3.convffn".
        op: the traced operator, such as "aten.conv2d.default".
        node: name of the traced node.
        shape: of its output.
        relative: its error over its largest magnitude, against the nearest candidate; None where
            the artefact holds no candidate of that size.
        after: path of the last module that still agrees; "" for none.
        note: what else is known.
    """

    module: str
    op: str
    node: str
    shape: tuple[int, ...]
    relative: float | None
    after: str
    note: str = ""

    def __str__(self) -> str:
        error = "" if self.relative is None else f", relative error {self.relative:.2g}"
        after = f", after {self.after}" if self.after else ""
        note = f" ({self.note})" if self.note else ""
        return f"{self.module or f'({self.node})'}: {self.op} {self.shape}{error}{after}{note}"


@dataclass(frozen=True)
class LayerRow:
    """One layer of the source and the artefact's tensor that holds its output.

    Attributes:
        module: path of the torch module; "" for what the model computes by itself, and where the
            source is a file.
        op: the last operator of the module whose output is in the artefact.
        name: of that output in the source.
        tensor: name of the artefact's tensor; "" where the compiler has merged the layer with
            another, and then all figures are None.
        cosine: between the two, whole tensors.
        snr_db: power of the source's tensor over that of the difference, at most 200.
        max_abs: largest absolute difference.
        lowest: smallest value in the artefact.
        highest: largest.
        headroom: 65504, the end of float16, over the largest magnitude; None for zeros.
        added: noise power over signal power that this layer adds to what its inputs bring.
        agrees: whether the difference is explained by rounding.
        mark: "first bad", "most error" (of the layers up to there), both with a comma, or "".
    """

    module: str
    op: str
    name: str
    tensor: str
    cosine: float | None = None
    snr_db: float | None = None
    max_abs: float | None = None
    lowest: float | None = None
    highest: float | None = None
    headroom: float | None = None
    added: float = 0.0
    agrees: bool = True
    mark: str = ""


@dataclass(frozen=True)
class ArtifactResult:
    """What is known of one artefact.

    Attributes:
        target: "onnx", "coreml" or "tvm".
        graph: "model", "image" or "text".
        file: name of the file.
        precision: as in the manifest.
        status: "passed", "failed", or "not run" when nothing here can run it.
        method: "executed", "program inspected, not executed" or "not run".
        engine: name and version of what ran or read it.
        reasons: why it failed, or was not run; one line each.
        warnings: what weakens the proof.
        figures: worst over the cases: cosine, max_abs, relative, snr_db; top1 is a share; spread
            and diff as in `vitlet.export.compare.Differences`. Of Core ML programs also
            cosine_fp32, relative_fp32, snr_db_fp32 (computed in float32 on the stored weights) and
            headroom (65504 over the largest magnitude of a float16 tensor).
        checks: of an inspection.
        tolerance: the limits that applied.
        cases: one entry per input.
        first_bad: the first diverging layer, where it was asked for and found.
        layers: one row per layer in the source's order, where it was asked for.
        layers_case: the input that `layers` and `first_bad` were found with.
    """

    target: str
    graph: str
    file: str
    precision: str
    status: Status
    method: str
    engine: str = ""
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    tolerance: dict[str, Any] = field(default_factory=dict)
    cases: tuple[CaseResult, ...] = ()
    first_bad: FirstBad | None = None
    layers: tuple[LayerRow, ...] = ()
    layers_case: str = ""

    def summary(self) -> dict[str, Any]:
        """Return what the manifest keeps: {"status", "method", "cosine", ...}."""
        figures = {name: float(f"{value:.4g}") for name, value in sorted(self.figures.items())}
        return {"status": self.status, "method": self.method, **figures}


@dataclass(frozen=True)
class Report:
    """A whole verification.

    Attributes:
        subject: name of the bundle or file.
        against: what was taken for the truth.
        artifacts: one entry each.
        environment: package -> version, and the platform.
        pictures: real case -> PNG as a data URI, for the HTML report; not part of the JSON.
    """

    subject: str
    against: str
    artifacts: tuple[ArtifactResult, ...]
    environment: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def passed(self) -> bool:
        """Whether nothing failed and at least one artefact passed."""
        statuses = {artifact.status for artifact in self.artifacts}
        return "passed" in statuses and "failed" not in statuses

    @property
    def worst(self) -> ArtifactResult | None:
        """The artefact that is furthest off: a failed one first, then by cosine."""
        checked = [artifact for artifact in self.artifacts if artifact.status != "not run"]
        key = {"failed": 0, "passed": 1}
        return min(
            checked,
            key=lambda a: (key[a.status], a.figures.get("cosine", 1.0)),
            default=None,
        )

    @property
    def reasons(self) -> list[str]:
        """Every reason of every failed artefact, with its file."""
        return [f"{a.file}: {r}" for a in self.artifacts if a.status == "failed" for r in a.reasons]

    def table(self) -> list[dict[str, str]]:
        """Return one row of short texts per artefact, for a terminal."""
        return [_row(artifact) for artifact in self.artifacts]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, without the pictures."""
        made = asdict(self)
        del made["pictures"]
        return {"passed": self.passed, **made}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Read back what `to_json` wrote.

        Raises:
            CorruptInputError: not a report.
        """
        try:
            return cls(
                data["subject"],
                data["against"],
                tuple(_artifact(entry) for entry in data["artifacts"]),
                dict(data["environment"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptInputError(f"not a verification report: {error!r}") from None


def _artifact(data: Mapping[str, Any]) -> ArtifactResult:
    bad = data["first_bad"]
    return ArtifactResult(
        **{
            **data,
            "reasons": tuple(data["reasons"]),
            "warnings": tuple(data["warnings"]),
            "checks": tuple(Check(**check) for check in data["checks"]),
            "cases": tuple(_case(case) for case in data["cases"]),
            "layers": tuple(LayerRow(**row) for row in data.get("layers", ())),
            "first_bad": bad and FirstBad(**{**bad, "shape": tuple(bad["shape"])}),
        }
    )


def _case(data: Mapping[str, Any]) -> CaseResult:
    guesses = {
        side: tuple((str(label), float(score)) for label, score in data[side])
        for side in ("expected", "actual")
    }
    return CaseResult(**{**data, **guesses})


def _row(artifact: ArtifactResult) -> dict[str, str]:
    figures = artifact.figures

    def number(name: str, form: str) -> str:
        return format(figures[name], form) if name in figures else "-"

    top1 = f"{figures['top1']:.0%}" if "top1" in figures else "-"
    notes = artifact.reasons or artifact.warnings
    return {
        "target": artifact.target,
        "graph": artifact.graph,
        "precision": artifact.precision,
        "status": artifact.status,
        "how": f"{artifact.engine or artifact.method}",
        "cosine": number("cosine", ".7f"),
        "max abs": number("max_abs", ".2g"),
        "relative": number("relative", ".2g"),
        "top-1": top1,
        "note": notes[0] if notes else (artifact.method if artifact.checks else ""),
    }
