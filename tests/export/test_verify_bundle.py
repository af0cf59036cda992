"""Whole bundles and foreign files: with torch, without it, and against another model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.errors import BundleError, UsageError, VerificationError
from vitlet.export.verify import require_passed, verify
from vitlet.runtime.bundle import Bundle, open_bundle


class Described(nn.Module):
    """A module with the `info` that the zoo's models have."""

    def __init__(self, inner: nn.Module, spec: Preprocess) -> None:
        super().__init__()
        self.inner = inner
        self.info: Any = type(
            "Info", (), {
                "name": "small", "family": "custom", "kind": "classifier", "config": {},
                "licence": "", "source": "", "weights": None, "labels": None, "preprocess": spec,
                "input_shape": (3, 32, 32),
            },
        )()  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.fixture(scope="module")
def model(small_conv: nn.Module, small_spec: Preprocess) -> nn.Module:
    return Described(small_conv, small_spec).eval()


@pytest.fixture(scope="module")
def bundle(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("out") / "small.vitlet"
    return vitlet.export(model, "all", out, precision="coreml=fp16")


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy.vitlet"))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, as an error at export would leave them."""
    import hashlib

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    path.write_text(json.dumps(manifest))


def test_a_bundle_passes_against_its_golden_outputs_and_against_its_model(
    bundle: Bundle, model: nn.Module
) -> None:
    golden, fresh = verify(bundle.path), verify(bundle.path, model)
    assert golden.passed and fresh.passed, (golden.reasons, fresh.reasons)
    assert [row.target for row in golden.artifacts] == ["onnx", "coreml", "tvm"]
    assert "weights not compared" in golden.artifacts[1].warnings[0]
    assert not fresh.artifacts[1].warnings and fresh.artifacts[1].figures["weights"] > 10
    assert {row.method for row in golden.artifacts} == {"executed"}
    assert golden.worst is not None and golden.worst.target == "coreml"  # float16 beside float32


def test_verifying_a_bundle_needs_no_torch(bundle: Bundle) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vitlet.export.verify import verify\n"
        f"report = verify({str(bundle.path)!r})\n"
        "assert report.passed, report.reasons\n"
        "print([a.status for a in report.artifacts])\n"
        "print(report.artifacts[1].method, report.artifacts[1].warnings[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    statuses, core_ml = done.stdout.splitlines()[-2:]
    assert statuses == "['passed', 'passed', 'passed']"
    assert core_ml.startswith("program inspected, not executed not executed: torch is needed")


def test_a_changed_file_is_refused_before_anything_runs(copied: Path) -> None:
    data = bytearray((copied / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.onnx").write_bytes(bytes(data))
    with pytest.raises(BundleError, match="changed"):
        verify(copied)


def test_a_wrong_mean_in_the_manifest_is_caught_by_golden_and_by_model(
    copied: Path, model: nn.Module
) -> None:
    path = copied / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["preprocess"]["mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(manifest))
    for report in (verify(copied), verify(copied, model)):
        onnx, core_ml, tvm = report.artifacts
        assert onnx.status == tvm.status == "failed"
    # The program still does what the model asks for, and no longer what the manifest says.
    assert verify(copied).artifacts[1].status == "failed"
    assert core_ml.status == "passed"
    with pytest.raises(VerificationError, match="differs"):
        require_passed(report)


def test_golden_outputs_of_another_model_are_caught(copied: Path) -> None:
    from vitlet.runtime.safetensors import load_file, save_file

    golden = load_file(copied / "golden.safetensors")
    save_file(
        {k: v[:, ::-1] if k.endswith("output") else v for k, v in golden.items()},
        copied / "golden.safetensors",
    )
    rehash(copied)
    report = verify(copied)
    assert not report.passed and report.artifacts[0].figures["top1"] < 1


@pytest.mark.parametrize("key", ["model/real_0", "model/real_0/middle", "model/odd_0/input"])
def test_a_golden_file_that_makes_no_sense_is_refused(copied: Path, key: str) -> None:
    from vitlet.runtime.safetensors import load_file, save_file

    golden = load_file(copied / "golden.safetensors")
    save_file({**golden, key: np.zeros((1, 2, 2, 3), np.uint8)}, copied / "golden.safetensors")
    rehash(copied)
    with pytest.raises(BundleError, match="golden"):
        verify(copied)


def test_images_of_a_folder_are_the_inputs(
    bundle: Bundle, model: nn.Module, tmp_path: Path
) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    report = verify(bundle.path, model, tmp_path)
    assert report.passed, report.reasons
    names = {case.name for case in report.artifacts[0].cases if case.batch == 1}
    assert names == {"real_0", "real_1"}


def test_kinds_of_inputs_can_be_chosen(bundle: Bundle) -> None:
    report = verify(bundle.path, inputs="random, worst")
    names = {case.name for case in report.artifacts[0].cases if case.batch == 1}
    assert names == {"random_0", "random_1", "zeros", "ones", "checkerboard", "out_of_range"}


def test_arguments_that_do_not_go_together_are_refused(
    bundle: Bundle, model: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--against"):
        verify(bundle.path, first_bad=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    with pytest.raises(UsageError, match="--against"):
        verify(bundle.path, inputs=tmp_path / "pictures")
    with pytest.raises(UsageError, match="no images"):
        verify(bundle.path, model, tmp_path)
    with pytest.raises(UsageError, match="some of real"):
        verify(bundle.path, inputs="reel")
    with pytest.raises(UsageError, match="html or"):
        verify(bundle.path, report=tmp_path / "r.pdf")
    with pytest.raises(UsageError, match="not a bundle"):
        verify(bundle.path / "model.onnx")
    with pytest.raises(UsageError, match="random ones prove nothing"):
        verify(bundle.path, "deit_tiny")
    with pytest.raises(UsageError, match="does not exist"):
        verify(tmp_path / "no.onnx", model)
    other = Described(model.inner, Preprocess(size=(28, 28), resize_to=28)).eval()
    with pytest.raises(UsageError, match="not the same model"):
        verify(bundle.path, other)


@pytest.mark.parametrize("file", ["model.onnx", "model.mlpackage", "tvm"])
def test_bare_files_are_verified_against_a_model(
    bundle: Bundle, model: nn.Module, small_vit: nn.Module, small_spec: Preprocess, file: str
) -> None:
    if file == "tvm":
        file = next(a.file for a in bundle.manifest.artifacts if a.target == "tvm")
    path = bundle.path / file
    assert verify(path, model).passed
    assert not verify(path, Described(small_vit, small_spec).eval()).passed


def test_the_first_wrong_layer_is_named_in_every_target(model: nn.Module, bundle: Bundle) -> None:
    import copy

    for layer in ("mix", "stem", "head"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.inner.get_submodule(layer).weight[:3].mul_(-1)
        report = verify(bundle.path, other, first_bad=True)
        for row in report.artifacts:
            assert row.first_bad is not None
            assert row.first_bad.module == f"inner.{layer}", row.first_bad


def test_an_error_planted_in_a_compiled_library_is_caught(
    bundle: Bundle, model: nn.Module, tmp_path: Path
) -> None:
    artifact = next(a for a in bundle.manifest.artifacts if a.target == "tvm")
    data = bytearray(bundle.file(artifact.file).read_bytes())
    weight = model.inner.head.bias.numpy().tobytes()
    place = data.find(weight[:32])
    assert place > 0, "the weights are in the library as they are"
    data[place + 3] ^= 0x80  # a sign
    (tmp_path / "other.tvm.so").write_bytes(bytes(data))
    assert not verify(tmp_path / "other.tvm.so", model).passed


def test_clip_models_are_compared_by_prompts_and_neighbours(
    small_clip: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    made = vitlet.export(
        small_clip, "onnx", tmp_path / "c.vitlet", spec=small_spec,
        prompts=["a dog", "a cat", "a tree"],
    )  # fmt: skip
    report = verify(made.path, report=tmp_path / "r.html")
    image, text = report.artifacts
    assert report.passed and image.figures["top1"] == text.figures["top1"] == 1
    assert [label for label, _ in image.cases[0].expected].count("a dog") == 1
    assert {case.name for case in text.cases} > {"empty", "full", "real_0", "random_0"}
    assert "a dog" in (tmp_path / "r.html").read_text()


def test_an_export_that_differs_is_kept_apart(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitlet.export import onnx as exporter

    right = exporter.export_onnx

    def wrong(graph: Any, path: Path, **options: Any) -> Any:
        import copy

        other = copy.deepcopy(graph.module)
        with torch.no_grad():
            other.inner.head.bias[0].add_(1)
        return right(replace(graph, module=other), path, **options)

    monkeypatch.setattr(exporter, "export_onnx", wrong)
    with pytest.raises(VerificationError) as caught:
        vitlet.export(model, "onnx", tmp_path / "bad.vitlet")
    assert caught.value.exit_code == 4
    assert [p.name for p in tmp_path.iterdir()] == ["bad.vitlet.unverified"]
    kept = open_bundle(tmp_path / "bad.vitlet.unverified")
    assert kept.manifest.artifacts[0].verification["status"] == "failed"
