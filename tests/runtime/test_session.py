import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vitlet
from vitlet.errors import (
    BundleError,
    CorruptInputError,
    MissingDependencyError,
    ShapeError,
    UnsupportedError,
    UsageError,
    VitletError,
)
from vitlet.runtime.bundle import open_bundle

MakeBundle = Callable[..., Path]


def images(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_runs_any_number_of_rows_on_any_batch(
    make_bundle: MakeBundle, tiny: SimpleNamespace, batch: int | str, count: int
) -> None:
    session = vitlet.load(make_bundle(batch))
    given = images(count)
    outputs = session.run({"image": given})
    np.testing.assert_allclose(outputs["logits"], tiny.reference(given), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(session(given), outputs["logits"])


def test_never_leaves_a_ranged_batch(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    session = vitlet.load(make_bundle("batch", details={"batch": [2, 3]}))
    engine = session._loaded("model").engine
    seen: list[int] = []
    run = engine.run

    def spy(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.append(len(feeds["image"]))
        return run(feeds)

    engine.run = spy  # type: ignore[method-assign]
    for count in (1, 2, 3, 4, 7):
        given = images(count)
        np.testing.assert_allclose(session(given), tiny.reference(given), rtol=1e-6, atol=1e-6)
    assert set(seen) == {2, 3}


def test_rows_do_not_depend_on_their_neighbours(make_bundle: MakeBundle) -> None:
    session = vitlet.load(make_bundle(2))
    given = images(5)
    alone = np.concatenate([session(given[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(session(given), alone)


def test_preprocesses_images_as_the_manifest_says(bundle: Path, tiny: SimpleNamespace) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    session = vitlet.load(bundle)
    expected = tiny.reference(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    np.testing.assert_allclose(session(list(pixels)), expected, atol=1e-5)
    np.testing.assert_allclose(session(pixels[0]), expected[:1], atol=1e-5)


def test_feeds_bytes_to_a_graph_that_preprocesses(
    make_bundle: MakeBundle, tiny: SimpleNamespace
) -> None:
    session = vitlet.load(make_bundle(1, in_graph=True))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    expected = tiny.reference(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(session(list(pixels)), expected, rtol=1e-5)
    with pytest.raises(UsageError, match="takes uint8 images"):
        session(images(1))


def test_predicts_the_best_labels_first(bundle: Path, tiny: SimpleNamespace) -> None:
    given = images(2)
    logits = tiny.reference(given).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = vitlet.load(bundle).predict(given, topk=5)
    for row, expected in zip(rows, scores, strict=True):
        assert [p.index for p in row] == list(np.argsort(-expected))
        assert [p.label for p in row] == [("cat", "dog", "cow")[p.index] for p in row]
        np.testing.assert_allclose([p.score for p in row], np.sort(expected)[::-1], rtol=1e-5)
    assert [len(row) for row in vitlet.load(bundle).predict(given, topk=1)] == [1, 1]


def test_compares_embeddings_with_the_prompts(clip_bundle: Path, tiny: SimpleNamespace) -> None:
    given = images(3)
    unit = tiny.reference(given)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = np.exp(10 * unit) / np.exp(10 * unit).sum(axis=1, keepdims=True)
    for row, expected in zip(vitlet.load(clip_bundle).predict(given), scores, strict=True):
        assert row[0].label == ("a cat", "a dog", "a cow")[int(np.argmax(expected))]
        assert row[0].score == pytest.approx(expected.max(), rel=1e-5)


def test_a_clip_bundle_without_prompts_says_how_to_get_them(
    clip_bundle: Path, tiny: SimpleNamespace
) -> None:
    opened = open_bundle(clip_bundle).manifest
    (clip_bundle / "prompts.safetensors").unlink()
    tiny.write_manifest(
        clip_bundle, list(opened.artifacts), model=opened.model, labels=None, prompts=None
    )
    with pytest.raises(UsageError, match="--prompts"):
        vitlet.load(clip_bundle).predict(images(1))
    with pytest.raises(UsageError, match="no graph 'text'"):
        vitlet.load(clip_bundle).encode_text("a dog")


def test_refuses_values_that_are_not_finite(bundle: Path) -> None:
    with pytest.raises(VitletError, match="not finite"):
        vitlet.load(bundle).predict(np.full((1, 3, 4, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"picture": images(1)},
        {"image": images(1).astype(np.float64)},
        {"image": images(1)[:, :2]},
        {"image": images(1)[0]},
        {"image": images(0)},
        {"image": images(1).tolist()},
        {"image": images(1), "more": images(1)},
    ],
)
def test_refuses_arrays_that_do_not_fit(bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShapeError):
        vitlet.load(bundle).run(feeds)


def test_refuses_senseless_arguments(bundle: Path) -> None:
    for arguments in ({"threads": 0}, {"engine": "torch"}, {"graph": "text"}, {"check": "none"}):
        with pytest.raises(UsageError):
            vitlet.load(bundle, **arguments)  # type: ignore[arg-type]
    session = vitlet.load(bundle)
    with pytest.raises(UsageError, match="topk"):
        session.predict(images(1), topk=0)
    with pytest.raises(UsageError, match="at least one image"):
        session([])


def test_refuses_a_changed_bundle(bundle: Path) -> None:
    path = bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    for check in ("all", "used"):
        with pytest.raises(BundleError, match="was changed"):
            vitlet.load(bundle, check=check)  # type: ignore[arg-type]


def test_checks_only_what_it_uses_when_asked(bundle: Path) -> None:
    path = bundle / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    vitlet.load(bundle, check="used")
    with pytest.raises(BundleError):
        vitlet.load(bundle)


def test_refuses_an_artefact_that_differs_from_its_entry(
    bundle: Path, tiny: SimpleNamespace
) -> None:
    manifest = open_bundle(bundle).manifest
    wrong = replace(
        manifest.artifacts[0], inputs=(replace(manifest.artifacts[0].inputs[0], name="picture"),)
    )
    tiny.write_manifest(bundle, [wrong])
    with pytest.raises(BundleError, match="its entry says"):
        vitlet.load(bundle)


def test_runs_a_bare_file_on_arrays_only(bundle: Path, tiny: SimpleNamespace) -> None:
    session = vitlet.load(bundle / "model.onnx")
    given = images(3)
    np.testing.assert_allclose(
        session.run({"image": given})["logits"], tiny.reference(given), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(UsageError, match="bare file"):
        session.predict(given)
    with pytest.raises(UsageError, match="bare file"):
        session(given)
    with pytest.raises(UsageError, match="neither a bundle"):
        vitlet.load(bundle / "golden.safetensors")


@pytest.mark.parametrize("keep", [0, 1, 50, 200])
def test_a_cut_onnx_file_gives_one_clear_line(bundle: Path, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes((bundle / "model.onnx").read_bytes()[:keep])
    with pytest.raises(CorruptInputError) as caught:
        vitlet.load(path)
    assert "\n" not in str(caught.value)
    assert "cut.onnx" in str(caught.value)


def test_says_that_core_ml_does_not_run_here(bundle: Path, tiny: SimpleNamespace) -> None:
    entry = replace(open_bundle(bundle).manifest.artifacts[0], target="coreml")
    tiny.write_manifest(bundle, [entry])
    with pytest.raises(UnsupportedError, match="Core ML"):
        vitlet.load(bundle)


def test_names_the_engines_that_a_bundle_has(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing for the engine tvm; it has onnx"):
        vitlet.load(bundle, engine="tvm")


def test_names_the_pip_line_of_a_missing_engine(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "vitlet\[runtime\]"'):
        vitlet.load(bundle)


def test_tells_what_it_runs(bundle: Path) -> None:
    info = vitlet.load(bundle, threads=2).info
    assert (info.model, info.graph, info.file) == ("tiny", "model", "model.onnx")
    assert (info.engine, info.threads, info.precision) == ("onnxruntime", 2, "fp32")
    assert info.to_json()["inputs"][0]["shape"] == (1, 3, 4, 4)


def test_many_threads_get_their_own_answers(make_bundle: MakeBundle, tiny: SimpleNamespace) -> None:
    session = vitlet.load(make_bundle(2))
    wrong: list[int] = []

    def work(seed: int) -> None:
        given = images(3, seed)
        for _ in range(20):
            if not np.allclose(session(given), tiny.reference(given), atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_runs_without_torch(bundle: Path) -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "torch", "torch was imported"
sys.meta_path.insert(0, Block())
import numpy as np, vitlet
session = vitlet.load(sys.argv[1])
session.predict(np.zeros((4, 4, 3), np.uint8))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
