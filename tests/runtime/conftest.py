"""Small bundles to open, damage and run: a two-layer classifier in ONNX, and in TVM."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitlet.data.spec import Preprocess
from vitlet.runtime.manifest import MANIFEST, Artifact, FileEntry, Manifest, Prompts, TensorSpec
from vitlet.runtime.safetensors import save_file

SIZE = 4
CLASSES = 3
WEIGHT = np.random.default_rng(0).normal(size=(3 * SIZE * SIZE, CLASSES)).astype(np.float32)


def reference(images: np.ndarray) -> np.ndarray:
    """relu(flatten(x) @ W): what every artefact here computes."""
    return np.maximum(images.reshape(len(images), -1) @ WEIGHT, 0.0)


def save_onnx(path: Path, batch: int | str, in_graph: bool = False) -> Artifact:
    dtype, shape = TensorProto.FLOAT, [batch, 3, SIZE, SIZE]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        helper.make_node("Relu", ["scores"], ["logits"]),
    ]
    if in_graph:  # uint8 (B, H, W, C) in; only the cast and the transposition matter here
        dtype, shape = TensorProto.UINT8, [batch, SIZE, SIZE, 3]
        nodes[0] = helper.make_node("Flatten", ["planes"], ["flat"])
        nodes[:0] = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return Artifact(
        "onnx", "model", path.name, "fp32",
        (TensorSpec("image", "uint8" if in_graph else "float32", tuple(shape)),),
        (TensorSpec("logits", "float32", (batch, CLASSES)),),
        preprocess="in-graph" if in_graph else "none",
    )  # fmt: skip


def entry(path: Path) -> FileEntry:
    content = path.read_bytes()
    return FileEntry(hashlib.sha256(content).hexdigest(), len(content))


def write_manifest(folder: Path, artifacts: list[Artifact], **given: Any) -> Manifest:
    """List whatever is in the folder and write its manifest."""
    files = {
        str(p.relative_to(folder)): entry(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    manifest = Manifest(
        vitlet="0.1.0",
        model={"name": "tiny", "kind": "classifier", "config": {}},
        preprocess=Preprocess(size=(SIZE, SIZE), resize="squash"),
        artifacts=tuple(artifacts),
        files=files,
        labels=("cat", "dog", "cow"),
    )
    manifest = replace(manifest, **given)
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    return manifest


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    def make(batch: int | str = 1, in_graph: bool = False, **given: Any) -> Path:
        folder = tmp_path / "tiny.vitlet"
        folder.mkdir()
        artifact = save_onnx(folder / "model.onnx", batch, in_graph)
        if "details" in given:
            artifact = replace(artifact, details=given.pop("details"))
        golden = {"model/zeros/input": np.zeros((1, 3, SIZE, SIZE), np.float32)}
        save_file(golden, folder / "golden.safetensors")
        write_manifest(folder, [artifact], golden={"model": "golden.safetensors"}, **given)
        return folder

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Path]) -> Path:
    return make_bundle()


@pytest.fixture
def clip_bundle(tmp_path: Path) -> Path:
    """An image graph whose "embedding" is the classifier's output, with three baked prompts."""
    folder = tmp_path / "clip.vitlet"
    folder.mkdir()
    artifact = replace(save_onnx(folder / "image.onnx", "batch"), graph="image")
    save_file({"embeddings": np.eye(CLASSES, dtype=np.float32)}, folder / "prompts.safetensors")
    write_manifest(
        folder,
        [artifact],
        labels=None,
        model={"name": "tiny_clip", "kind": "clip", "config": {}},
        prompts=Prompts(("a cat", "a dog", "a cow"), ("{}",), "prompts.safetensors", 10.0),
    )
    return folder


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The functions above, for tests in other files."""
    return SimpleNamespace(
        reference=reference, save_onnx=save_onnx, write_manifest=write_manifest, size=SIZE
    )
