"""The test for Apple devices: every file is there, and Python reads what the Swift test will."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError
from vitlet.export.api import export
from vitlet.export.cases import Case, write_cases
from vitlet.export.golden import make_golden
from vitlet.export.trace import graphs
from vitlet.export.xctest import FOLDER, read_golden, write_xctest
from vitlet.export.xctest_swift import PACKAGE, README, TEST
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.bundle import Bundle
from vitlet.runtime.manifest import Artifact, TensorSpec

LABELS = [f"class {i}" for i in range(10)]
SHAPE = (3, 32, 32)


def made(folder: Path, model: nn.Module, spec: Preprocess, **given: Any) -> Bundle:
    return export(
        model, ["coreml"], folder / "m.vitlet", spec=spec, verify=False, xctest=True, **given
    )


def golden_of(bundle: Bundle) -> dict[str, Any]:
    return json.loads((bundle.path / FOLDER / "Tests/GoldenTests/Golden/golden.json").read_text())


@pytest.fixture(scope="module")
def pictures(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A classifier of pictures, with labels in the program."""
    return made(tmp_path_factory.mktemp("x"), small_vit, small_spec, labels=LABELS)


def test_the_files_are_the_bundles_own_with_their_hashes(pictures: Bundle) -> None:
    listed = {name for name in pictures.manifest.files if name.startswith(f"{FOLDER}/")}
    described = golden_of(pictures)
    named = {
        f"{FOLDER}/Tests/GoldenTests/Golden/{case[side]}"
        for case in described["cases"]
        for side in ("inputFile", "outputFile")
    }
    fixed = {"Package.swift", "README.md", "Tests/GoldenTests/GoldenTests.swift",
             "Tests/GoldenTests/Golden/golden.json"}  # fmt: skip
    assert listed == named | {f"{FOLDER}/{name}" for name in fixed}
    pictures.check()
    assert described["tolerance"] == {"model.mlpackage": {"cosine": 0.999, "relative": 0.02}}
    assert {case["name"] for case in described["cases"]} >= {"real_0", "random_0", "ones"}


def relative(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.abs(expected - actual).max() / np.abs(expected).max())


def test_the_executor_passes_it_on_pictures(pictures: Bundle) -> None:
    executor = CoreMLExecutor(pictures.path / "model.mlpackage", "declared")
    for case in golden_of(pictures)["cases"]:
        pixels, expected = read_golden(pictures.path, case)
        assert (case["kind"], pixels.shape, pixels.dtype) == ("uint8", (32, 32, 3), np.uint8)
        scores = executor.run({case["input"]: pixels})[case["output"]]
        actual = np.array([scores[label] for label in case["labels"]])
        assert relative(expected, actual) < 0.02, case["name"]
        assert expected.sum() == pytest.approx(1, abs=1e-5)


def test_the_executor_passes_it_on_arrays(
    small_conv: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    bundle = made(tmp_path, small_conv, small_spec, preprocess="none", batch=2, precision="fp32")
    executor = CoreMLExecutor(bundle.path / "model.mlpackage")
    cases = golden_of(bundle)["cases"]
    for case in cases:
        given, expected = read_golden(bundle.path, case)
        assert case["kind"] == "float32" and given.shape == (2, *SHAPE) and case["labels"] == []
        actual = executor.run({case["input"]: given})[case["output"]].reshape(-1)
        assert relative(expected, actual) < 1e-4, case["name"]
    assert {"random_1", "ones"} <= {case["name"] for case in cases}
    assert golden_of(bundle)["tolerance"]["model.mlpackage"]["cosine"] == 0.99999


def test_the_same_input_gives_the_same_bytes_and_token_ids_are_int32(tmp_path: Path) -> None:
    tokens = np.zeros((1, 77), np.int64)
    tokens[0, :3] = 49406, 320, 49407
    cases = [Case("text", "real_0", tokens, np.ones((1, 4), np.float32))]
    artifact = Artifact(
        "coreml", "text", "text.mlpackage", "fp16",
        (TensorSpec("tokens", "int32", (1, 77)),), (TensorSpec("embedding", "float32", (1, 4)),),
    )  # fmt: skip
    spec = Preprocess(size=(4, 4), resize="squash")
    names = [
        write_xctest(tmp_path / run, [artifact], write_cases(cases), spec) for run in ("a", "b")
    ]
    assert names[0] == names[1] == sorted(names[0])
    for name in names[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (described,) = (tmp_path / "a").rglob("golden.json")
    (case,) = json.loads(described.read_text())["cases"]
    given, expected = read_golden(tmp_path / "a", case)
    assert (
        given.dtype == np.int32 and np.array_equal(given, tokens) and expected.tolist() == [1] * 4
    )


def test_the_swift_test_reads_what_is_written(pictures: Bundle) -> None:
    """No Swift compiler is here: names of fields, files and folders are compared as text."""
    case = golden_of(pictures)["cases"][0]
    fields = re.search(r"struct Case: Decodable \{(.*?)\n    \}", TEST, re.S)
    assert fields is not None
    declared = set(re.findall(r"\b(\w+)(?=[,:])", fields[1]))
    assert declared >= set(case) and set(re.findall(r"item\.(\w+)", TEST)) <= set(case)
    limits = golden_of(pictures)["tolerance"]["model.mlpackage"]
    assert set(re.findall(r"limit\.(\w+)", TEST)) == set(limits)
    assert '.copy("Golden")' in PACKAGE and 'forResource: "Golden"' in TEST
    for left, right in ("()", "[]", "{}"):
        assert TEST.count(left) == TEST.count(right)
    # From the file to the bundle: GoldenTests.swift, GoldenTests, Tests, xctest.
    swift = f"{FOLDER}/Tests/GoldenTests/GoldenTests.swift"
    assert swift in pictures.manifest.files and f"0..<{swift.count('/') + 1} " in TEST


def test_the_package_asks_for_the_systems_of_the_program(
    small_conv: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    bundle = made(tmp_path, small_conv, small_spec, ios=18, tolerance="cosine=0.5")
    package = (bundle.path / FOLDER / "Package.swift").read_text()
    assert '.iOS("18.0")' in package and '.macOS("15.0")' in package
    assert golden_of(bundle)["tolerance"]["model.mlpackage"] == {"cosine": 0.5, "relative": 0.02}
    text = (bundle.path / FOLDER / "README.md").read_text()
    assert "model.mlpackage" in text and "is not simulated" in text
    assert "{" not in text and "{programs}" in README


def test_what_it_cannot_test_is_refused(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="taken by coreml"):
        export(small_vit, ["onnx"], tmp_path / "m.vitlet", spec=small_spec, xctest=True)
    graph = graphs(small_vit, SHAPE)[0]
    with torch.no_grad():
        golden = make_golden(small_vit, [graph], small_spec)
    artifact = Artifact(
        "coreml", "model", "m.mlpackage", "fp16", (TensorSpec("image", "uint8", (1, 32, 32, 3)),),
        (TensorSpec("p", "float32", (1, 10)),), "image-type", details={"class_labels": True},
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="equal class names"):
        write_xctest(tmp_path, [artifact], golden, small_spec, labels=["a"] * 10)
