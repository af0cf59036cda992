"""Core ML programs as an engine of a session: faithful, and only where it is asked for."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_coreml import save

import vitlet
from vitlet.data.spec import Preprocess
from vitlet.errors import ShapeError, UnsupportedError, UsageError
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools
from vitlet.runtime.manifest import MANIFEST, Artifact, FileEntry, Manifest, TensorSpec

with quiet_coremltools():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol, types

R = np.random.default_rng(5)
WEIGHT = R.standard_normal((3, 12)).astype(np.float32)
LABELS = ("cat", "dog", "eel")


def scores(image: Any) -> Any:
    return mb.linear(x=mb.reshape(x=image, shape=[-1, 12]), weight=WEIGHT, name="logits")


def probabilities(image: Any) -> Any:
    return mb.softmax(x=scores(image), axis=-1, name="p")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey picture of 3 x 4 pixels to three classes, with labels in the program."""
    folder = tmp_path_factory.mktemp("engine") / "tiny.vitlet"
    folder.mkdir()
    grey = ct.colorlayout.GRAYSCALE
    picture = ct.ImageType(
        name="image", shape=(1, 1, 3, 4), scale=0.01, bias=-1.0, color_layout=grey
    )  # fmt: skip
    save(
        probabilities, [(1, 1, 3, 4)], folder / "model.mlpackage",
        inputs=[picture], pass_pipeline=ct.PassPipeline.DEFAULT,
        classifier_config=ct.ClassifierConfig([*LABELS]),
    )  # fmt: skip
    artifact = Artifact(
        "coreml", "model", "model.mlpackage", "fp32",
        (TensorSpec("image", "uint8", (1, 3, 4, 1)),),
        (TensorSpec("classLabel_probs", "float32", (1, 3)),),
        preprocess="image-type", details={"class_labels": True},
    )  # fmt: skip
    files = {
        str(path.relative_to(folder)): FileEntry(
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
    spec = Preprocess(size=(3, 4), resize="squash", mode="L", mean=(0.5,), std=(0.5,))
    model = {"name": "tiny", "kind": "classifier", "config": {}}
    manifest = Manifest("0.1.0", model, spec, (artifact,), files, labels=LABELS)
    (folder / MANIFEST).write_text(json.dumps(manifest.to_json()))
    return folder


def expected(pixels: np.ndarray) -> np.ndarray:
    values = (pixels.reshape(-1, 12) * 0.01 - 1.0) @ WEIGHT.T
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_pictures_become_the_probabilities_of_the_program(bundle: Path) -> None:
    session = vitlet.load(bundle, engine="coreml")
    pixels = R.integers(0, 256, (5, 3, 4, 1), dtype=np.uint8)
    given = session.run({"image": pixels})["classLabel_probs"]
    np.testing.assert_allclose(given, expected(pixels), rtol=1e-4)
    guesses = session.predict([picture[:, :, 0] for picture in pixels], topk=3)
    order = np.argsort(-expected(pixels), axis=1)
    for row, best, chances in zip(guesses, order, expected(pixels), strict=True):
        assert [guess.label for guess in row] == [LABELS[i] for i in best]
        np.testing.assert_allclose([g.score for g in row], chances[best], rtol=1e-4)
    assert session.info.engine == "coreml" and session.info.inputs[0].shape == (1, 3, 4, 1)


def test_arrays_of_floats_are_refused_where_pictures_go_in(bundle: Path) -> None:
    session = vitlet.load(bundle, engine="coreml")
    with pytest.raises(UsageError, match="preprocesses by itself and takes uint8 images"):
        session(np.zeros((1, 1, 3, 4), np.float32))
    with pytest.raises(ShapeError, match=r"expected image as uint8 \(1, 3, 4, 1\)"):
        session.run({"image": np.zeros((1, 1, 3, 4), np.uint8)})


def test_auto_never_chooses_it_and_says_how_to_ask(bundle: Path) -> None:
    for path in (bundle, bundle / "model.mlpackage"):
        with pytest.raises(UnsupportedError, match='ask for the engine "coreml"'):
            vitlet.load(path)


def test_the_number_of_torchs_threads_is_put_back(bundle: Path) -> None:
    before = torch.get_num_threads()
    session = vitlet.load(bundle, engine="coreml", threads=before + 1)
    session.run({"image": np.zeros((1, 3, 4, 1), np.uint8)})
    assert torch.get_num_threads() == before


def test_a_bare_package_takes_arrays(tmp_path: Path) -> None:
    path = save(scores, [(2, 1, 3, 4)], tmp_path / "m.mlpackage")
    session = vitlet.load(path, engine="coreml")
    x = R.standard_normal((5, 1, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(
        session.run({"image": x})["logits"], x.reshape(5, 12) @ WEIGHT.T, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UsageError, match="bare file without preprocessing"):
        session(x)
    with pytest.raises(UsageError, match="runs in coreml, not in tvm"):
        vitlet.load(path, engine="tvm")


def test_a_range_of_batches_is_taken_as_it_comes(tmp_path: Path) -> None:
    free = ct.TensorType(name="image", shape=(ct.RangeDim(1, 8, default=1), 1, 3, 4))

    def build(image: Any) -> Any:
        return mb.mul(x=image, y=2.0, name="y")

    size = mb.TensorSpec((get_new_symbol(), 1, 3, 4))
    path = save(build, [size], tmp_path / "m.mlpackage", inputs=[free])
    session = vitlet.load(path, engine="coreml")
    assert session.info.inputs[0].shape == ("batch", 1, 3, 4)
    x = R.standard_normal((5, 1, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(session.run({"image": x})["y"], 2 * x)
    with pytest.raises(ShapeError, match="1 to 8"):
        session.run({"image": np.concatenate([x, x])})


def test_what_a_session_cannot_carry_is_refused(tmp_path: Path) -> None:
    def remember(x: Any, s: Any) -> Any:
        total = mb.add(x=mb.cast(x=x, dtype="fp16"), y=mb.read_state(input=s))
        return mb.coreml_update_state(state=s, value=total)

    specs = [mb.TensorSpec((2,)), mb.StateTensorSpec((2,), dtype=types.fp16)]
    save(remember, specs, tmp_path / "state.mlpackage", ios=18)
    with pytest.raises(UnsupportedError, match=r"keeps a state \(s\)"):
        vitlet.load(tmp_path / "state.mlpackage", engine="coreml")
    config = ct.ClassifierConfig(["crane", "dog", "crane"])
    twice = save(
        probabilities, [(1, 1, 3, 4)], tmp_path / "twice.mlpackage", classifier_config=config
    )
    assert CoreMLExecutor(twice).labels == ("crane", "dog", "crane")
    with pytest.raises(UnsupportedError, match="two classes of the name 'crane'"):
        vitlet.load(twice, engine="coreml")
