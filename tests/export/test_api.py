from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import fill
from torch import nn

import vitlet
from vitlet.data.demo import demo_photos
from vitlet.data.preprocess import preprocess
from vitlet.data.spec import Preprocess
from vitlet.errors import StorageError, UnsupportedError, UsageError, VerificationError
from vitlet.runtime.bundle import Bundle
from vitlet.runtime.safetensors import load_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def everything(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Every target of one small model, verified."""
    labels = tmp_path_factory.mktemp("labels") / "labels.txt"
    labels.write_text("".join(f"class {i}\n" for i in range(10)))
    out = tmp_path_factory.mktemp("out") / "small.vitlet"
    return vitlet.export(
        small_vit, "all", out, spec=small_spec, labels=labels, metadata={"author": "me"}
    )


def test_every_target_is_made_and_checked(everything: Bundle) -> None:
    manifest = everything.manifest
    everything.check()
    assert [a.target for a in manifest.artifacts] == ["onnx", "coreml", "tvm"]
    assert {a.verification["status"] for a in manifest.artifacts} == {"passed"}
    assert manifest.labels == tuple(f"class {i}" for i in range(10))
    assert manifest.model["kind"] == "classifier"
    assert manifest.golden == {"model": "golden.safetensors"}
    core_ml = manifest.artifact("coreml", "model")
    assert core_ml is not None and core_ml.details["class_labels"]


def test_nothing_but_the_bundle_is_left(everything: Bundle) -> None:
    assert names(everything.path.parent) == ["small.vitlet"]


def test_nothing_in_a_bundle_tells_of_the_machine(everything: Bundle) -> None:
    here = [str(Path.home()).encode(), str(Path(vitlet.__file__).parent).encode(), b"/tmp/"]
    for name in everything.manifest.files:
        data = everything.file(name).read_bytes()
        assert not [path for path in here if len(path) > 5 and path in data], name


def test_prompts_and_tokenizer_go_with_a_clip_model(
    small_clip: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    bundle = vitlet.export(
        small_clip,
        "onnx",
        tmp_path / "clip.vitlet",
        spec=small_spec,
        prompts=("a dog", "a cat"),
        templates=("a photo of {}.", "{} outside"),
    )
    manifest = bundle.manifest
    assert [a.file for a in manifest.artifacts] == ["image.onnx", "text.onnx"]
    assert manifest.prompts is not None and manifest.tokenizer == "clip-bpe-77"
    assert manifest.prompts.logit_scale == pytest.approx(np.exp(2.6))
    assert json.loads(bundle.file("tokenizer.json").read_text())
    table = load_file(bundle.file(manifest.prompts.file))["embeddings"]
    texts = [["a photo of a dog.", "a dog outside"], ["a photo of a cat.", "a cat outside"]]
    for row, pair in zip(table, texts, strict=True):
        features = small_clip.text_tower(torch.from_numpy(vitlet.tokenize(pair)))  # type: ignore[operator]
        mean = torch.nn.functional.normalize(features, dim=-1).mean(0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-6)
    session = vitlet.load(bundle.path)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (best,) = session.predict(picture, topk=2)
    assert {guess.label for guess in best} == {"a dog", "a cat"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ("a dog",)}, "prompts and templates are for CLIP-style models"),
        ({"labels": ("a", "b")}, "the model has 10 classes, 2 labels were given"),
        ({"weights": "x.pt"}, "weights and config go with a zoo name"),
        ({"spec": None}, "has no `info`: give its input with spec="),
        ({"targets": "onxn"}, "unknown target 'onxn': did you mean 'onnx'"),
        ({"labels": "no such file"}, "cannot read the labels"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_and_nothing_is_written(
    arguments: dict[str, Any],
    message: str,
    small_vit: nn.Module,
    small_spec: Preprocess,
    tmp_path: Path,
) -> None:
    given = {"targets": "onnx", "out": tmp_path / "m.vitlet", "spec": small_spec, **arguments}
    with pytest.raises(UsageError, match=message):
        vitlet.export(small_vit, **given)
    assert names(tmp_path) == []


def test_a_bad_argument_is_refused_before_the_model_is_built(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="coreml does not take batch 'dyn'"):
        vitlet.export("no_such_model", "coreml", tmp_path / "m.vitlet", batch="dyn")


def test_a_difference_keeps_the_bundle_apart_and_raises(
    small_vit: nn.Module,
    small_spec: Preprocess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitlet.export import onnx_passes

    honest = onnx_passes.name_everything

    def planted(model: Any, wrapper: str = "") -> None:
        honest(model, wrapper)
        weight = model.graph.initializers["patch.weight"]
        array = weight.const_value.numpy().copy()
        array[:, 0] *= -1
        import onnx_ir

        weight.const_value = onnx_ir.tensor(array, name=weight.name)

    monkeypatch.setattr(onnx_passes, "name_everything", planted)
    reports: list[Any] = []
    with pytest.raises(VerificationError, match=r"model\.onnx.*kept as .*m\.vitlet\.unverified"):
        vitlet.export(
            small_vit, "onnx", tmp_path / "m.vitlet", spec=small_spec, on_report=reports.append
        )
    assert names(tmp_path) == ["m.vitlet.unverified"]
    assert not reports[0].passed


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    small_vit: nn.Module,
    small_spec: Preprocess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device; nothing was left behind"):
        vitlet.export(small_vit, "onnx", tmp_path / "m.vitlet", spec=small_spec)
    assert names(tmp_path) == []


def test_verification_can_be_left_out_and_is_then_not_claimed(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path: Path
) -> None:
    bundle = vitlet.export(
        small_vit, "onnx", tmp_path / "m.vitlet", spec=small_spec, verify=False, batch="1:4"
    )
    assert bundle.manifest.artifacts[0].verification == {"status": "not run"}
    assert bundle.manifest.artifacts[0].details["batch"] == [1, 4]


_TWICE = """
import sys
import torch
import vitlet
from vitlet.data.spec import Preprocess
from vitlet.models.casvit import CASViT

torch.manual_seed(0)
model = CASViT(depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_classes=10, img_size=32).eval()
spec = Preprocess(size=(32, 32), resize_to=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
labels = [f"class {i}" for i in range(10)]
vitlet.export(model, "all", sys.argv[1], spec=spec, labels=labels, metadata={"b": "1", "a": "2"})
"""


@pytest.mark.slow
def test_two_processes_give_equal_bundles(tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        seed = {"one": "1", "two": "2"}[name]  # the order of sets must not matter
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1", "PYTHONHASHSEED": seed}
        out = tmp_path / name / "m.vitlet"
        out.parent.mkdir()
        subprocess.run(
            [sys.executable, "-c", _TWICE, str(out)],
            env=environment,
            check=True,
            timeout=900,
        )
        trees.append(
            {
                file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
                for file in out.rglob("*")
                if file.is_file()
            }
        )
    assert trees[0] == trees[1]
    assert {"manifest.json", "golden.safetensors", "model.onnx"} <= set(trees[0])


@pytest.mark.slow
def test_mobileclip_s0_goes_to_every_target_and_classifies_by_its_prompts(tmp_path: Path) -> None:
    model = fill(vitlet.create_model("mobileclip_s0"))
    classes = ("a dog", "a cat", "a bicycle")
    bundle = vitlet.export(model, "all", tmp_path / "s0.vitlet", prompts=classes)
    found = {(a.target, a.graph): a.verification["status"] for a in bundle.manifest.artifacts}
    assert len(found) == 6
    assert set(found.values()) == {"passed"}
    photo = next(iter(demo_photos().values()))
    (best,) = vitlet.load(bundle.path, engine="onnxruntime").predict(photo, topk=3)
    with torch.no_grad():
        texts = torch.from_numpy(vitlet.tokenize([f"a photo of a {name}." for name in classes]))
        pixels = torch.from_numpy(preprocess(photo, model.info.preprocess))
        image, text, scale = model(pixels, texts)
    expected = (scale * image @ text.T).softmax(dim=-1)[0]
    for guess in best:
        assert guess.score == pytest.approx(float(expected[classes.index(guess.label)]), abs=1e-4)
