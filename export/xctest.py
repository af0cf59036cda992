"""Writes the test with which the owner of a Mac or an iPhone finishes the proof of a bundle.

What is verified elsewhere is what a program means, not what a Neural Engine or a GPU makes of it.
The folder `xctest` is a Swift package: golden inputs, the source model's answers, the tolerances,
and a test that runs every Core ML program of the bundle on each kind of processor and compares. Its
README says what it proves and what it does not.

A golden file is the array's numbers alone, in C order and little endian: float32, int32 or, for a
picture, uint8 rows of pixels (height, width, channels). `golden.json` says which::

    {"tolerance": {"model.mlpackage": {"cosine": 0.999, "relative": 0.02}},
     "cases": [{"program": "model.mlpackage", "name": "real_0", "input": "image", "kind": "uint8",
                "shape": [224, 224, 3], "inputFile": "model.real_0.input.bin", "output": "logits",
                "outputFile": "model.real_0.output.bin", "labels": []}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError
from vitlet.export.cases import Case, read_cases
from vitlet.export.tolerance import tolerance_for
from vitlet.export.xctest_swift import PACKAGE, README, TEST
from vitlet.runtime.manifest import Artifact

FOLDER = "xctest"
_GOLDEN = "Tests/GoldenTests/Golden"
_MACOS = {16: 13, 17: 14, 18: 15}  # the macOS that has the Core ML of an iOS
_KINDS = {"uint8": "<u1", "float32": "<f4", "int32": "<i4"}
_EXTREMES = ("ones", "full")  # of the worst cases, those that a device can meet


def write_xctest(
    folder: Path,
    artifacts: Sequence[Artifact],
    golden: Mapping[str, NDArray[Any]],
    preprocess: Preprocess,
    *,
    labels: Sequence[str] | None = None,
    tolerance: Mapping[str, float] | None = None,
) -> list[str]:
    """Write the folder `xctest` into a bundle in the making.

    Args:
        folder: the bundle's.
        artifacts: of the bundle; those that are Core ML programs get a test.
        golden: tensors of the golden file.
        preprocess: how pictures become the model's input.
        labels: class names of a classifier.
        tolerance: field of `Tolerance` -> value, replacing the table's.

    Returns:
        The paths of the files, from `folder`, in order.

    Raises:
        UnsupportedError: there is no Core ML program, or a classifier has equal labels.
    """
    programs = [artifact for artifact in artifacts if artifact.target == "coreml"]
    if not programs:
        raise UnsupportedError("xctest is a test of Core ML programs: export to coreml too")
    texts: dict[str, bytes] = {}
    cases, limits = [], {}
    for artifact in programs:
        allowed = tolerance_for("coreml", artifact.precision, dict(tolerance or {}))
        limits[artifact.file] = {"cosine": allowed.cosine, "relative": allowed.rel}
        for case in read_cases(golden).get(artifact.graph, []):
            given = _given(case, artifact, preprocess)
            if given is not None:
                entry, arrays = _entry(case, artifact, given, labels)
                cases.append(entry)
                texts |= {f"{_GOLDEN}/{name}": array.tobytes() for name, array in arrays.items()}
    described = json.dumps({"tolerance": limits, "cases": cases}, indent=1, sort_keys=True)
    ios = max(int(artifact.details.get("ios", 16)) for artifact in programs)
    names = ", ".join(artifact.file for artifact in programs)
    texts |= {
        f"{_GOLDEN}/golden.json": f"{described}\n".encode(),
        "Package.swift": PACKAGE.format(ios=ios, macos=_MACOS[ios]).encode(),
        "Tests/GoldenTests/GoldenTests.swift": TEST.encode(),
        "README.md": README.format(programs=names).encode(),
    }
    for name, content in texts.items():
        path = folder / FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sorted(f"{FOLDER}/{name}" for name in texts)


def read_golden(folder: Path, entry: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (input, expected output) of one case, by the rule that the Swift test reads by.

    Args:
        folder: the bundle's.
        entry: one of the "cases" of `golden.json`.
    """
    place = folder / FOLDER / _GOLDEN
    given = np.frombuffer((place / entry["inputFile"]).read_bytes(), _KINDS[entry["kind"]])
    return (
        given.reshape(entry["shape"]),
        np.frombuffer((place / entry["outputFile"]).read_bytes(), "<f4"),
    )


def _given(case: Case, artifact: Artifact, preprocess: Preprocess) -> NDArray[Any] | None:
    """Return a case's input as the program takes it; None where a device cannot meet the case."""
    if case.kind == "worst" and case.name not in _EXTREMES:
        return None
    if artifact.preprocess == "image-type":
        return case.pixels(preprocess)[0] if case.is_pixels else None
    array = case.floats(preprocess)
    array = np.repeat(array, _batch(artifact), axis=0)
    return array.astype(_KINDS[artifact.inputs[0].dtype])


def _batch(artifact: Artifact) -> int:
    """Return the lowest batch that a program takes."""
    first = artifact.inputs[0].shape[0]
    given = artifact.details.get("batch", 1)
    return first if isinstance(first, int) else int(given[0] if isinstance(given, list) else given)


def _entry(
    case: Case, artifact: Artifact, given: NDArray[Any], labels: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what `golden.json` says of a case, and the files that it names."""
    expected = case.output.astype(np.float64)
    names: list[str] = []
    if artifact.details.get("class_labels"):
        names = [*(labels or ())]
        if len(set(names)) != len(names):
            raise UnsupportedError(
                "xctest cannot check a Core ML classifier with equal class names: it gives one "
                "probability per name"
            )
        powers = np.exp(expected - expected.max(axis=1, keepdims=True))
        expected = powers / powers.sum(axis=1, keepdims=True)
    if artifact.preprocess != "image-type":
        expected = np.repeat(expected, len(given), axis=0)
    stem = f"{artifact.graph}.{case.name}"
    files = (f"{stem}.input.bin", f"{stem}.output.bin")
    entry = {
        "program": artifact.file,
        "name": case.name,
        "input": artifact.inputs[0].name,
        "kind": str(given.dtype),
        "shape": list(given.shape),
        "inputFile": files[0],
        "output": artifact.outputs[0].name,
        "outputFile": files[1],
        "labels": names,
    }
    return entry, {files[0]: given, files[1]: expected.astype("<f4")}
