"""Our kernels in ONNX Runtime: tried out first, refused with a warning, turned off on request."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

import vitlet
from vitlet.paths import ort_library
from vitlet.runtime import accelerate, accelerate_check
from vitlet.runtime.ort import OrtEngine

ROOT = Path(__file__).parents[2]
MODEL = accelerate._MODEL
LIBRARY = ort_library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="this build has no libvitlet_ort")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing remembered, on disk or in the process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VITLET_ACCELERATE", raising=False)
    monkeypatch.setattr(accelerate, "_warned", set())
    accelerate._problem.cache_clear()


def use(library: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlet.paths.ort_library", lambda: library)


def run(engine: OrtEngine) -> dict[str, np.ndarray]:
    x = np.random.default_rng(1).normal(size=engine.inputs[0].shape).astype(np.float32)
    return engine.run({"x": x})


def test_one_file_runs_with_and_without_the_library() -> None:
    fast, plain = OrtEngine(MODEL), OrtEngine(MODEL, accelerate=False)
    assert (fast.kernels, plain.kernels) == ("library", "functions")
    ours, theirs = run(fast), run(plain)
    assert list(ours) == list(accelerate_check.LIMITS)
    for name, limit in accelerate_check.LIMITS.items():
        assert np.abs(ours[name] - theirs[name]).max() < limit * np.abs(theirs[name]).max()
    # The definitions know no bfloat16: a difference shows that the kernel ran.
    assert not np.array_equal(ours["bf16"], ours["fp32"])
    np.testing.assert_array_equal(theirs["bf16"], theirs["fp32"])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_result(threads: int) -> None:
    np.testing.assert_array_equal(
        run(OrtEngine(MODEL, threads=threads))["fp32"], run(OrtEngine(MODEL))["fp32"]
    )


def test_a_session_says_which_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vitlet.load(MODEL).info.kernels == "library"
    assert vitlet.load(MODEL, accelerate=False).info.kernels == "functions"
    monkeypatch.setenv("VITLET_ACCELERATE", "0")
    assert vitlet.load(MODEL).info.kernels == "functions"
    plain = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Relu (x) }'
    )
    onnx.save(plain, tmp_path / "plain.onnx")
    assert vitlet.load(tmp_path / "plain.onnx").info.kernels == "none"


def test_passing_is_remembered_per_library_and_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accelerate.usable_library() == (LIBRARY, "")
    remembered = tmp_path / "cache" / "vitlet" / "accelerate.json"
    assert "passed" in json.loads(remembered.read_text())
    monkeypatch.setattr(accelerate, "_try_out", lambda library: "tried again")
    accelerate._problem.cache_clear()
    assert accelerate.usable_library() == (LIBRARY, "")
    monkeypatch.setattr("onnxruntime.__version__", "9.9.9")
    accelerate._problem.cache_clear()
    assert accelerate.usable_library() == (None, "tried again")


def test_damaged_memory_is_no_obstacle(tmp_path: Path) -> None:
    remembered = tmp_path / "cache" / "vitlet" / "accelerate.json"
    remembered.parent.mkdir(parents=True)
    remembered.write_text("[]")
    assert accelerate.usable_library() == (LIBRARY, "")


def test_a_read_only_home_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/none")
    assert accelerate.usable_library() == (LIBRARY, "")


@pytest.mark.parametrize("kind", ["not a library", "no operators", "hangs"])
def test_a_bad_library_leaves_the_definitions_and_one_warning(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libvitlet_ort.so"
    library.write_bytes(b"nothing")
    if kind == "no operators":
        from vitlet import _C

        shutil.copy(str(_C.__file__), library)
    if kind == "hangs":
        monkeypatch.setattr(accelerate, "_SECONDS", 0.01)
    use(library, monkeypatch)
    with pytest.warns(RuntimeWarning, match="cannot be used in ONNX Runtime") as caught:
        engines = [OrtEngine(MODEL), OrtEngine(MODEL)]
    assert len(caught) == 1
    assert [engine.kernels for engine in engines] == ["functions", "functions"]
    assert run(engines[0])["fp32"].shape == (2, 20, 9, 7)


def test_a_library_that_crashes_takes_only_its_test_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "check.py"
    child.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(accelerate, "_CHECK", child)
    with pytest.warns(RuntimeWarning, match="ended by signal 11"):
        assert OrtEngine(MODEL).kernels == "functions"


def test_a_wrong_answer_fails_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(str(MODEL))
    (bias,) = (t for t in model.graph.initializer if t.name == "mixer_proj_bias")
    # The kernel adds the bias; a definition that does not is another function.
    (body,) = (f for f in model.functions if (f.name, f.overload) == ("AdditiveTokenMixer", ""))
    (last,) = (node for node in body.node if "proj_bias" in node.input)
    del last.input[2]
    assert bias.dims == [20]
    onnx.save(model, tmp_path / "wrong.onnx")
    monkeypatch.setattr(accelerate, "_MODEL", tmp_path / "wrong.onnx")
    path, reason = accelerate.usable_library()
    assert path is None and "fp32 is off by" in reason


def test_without_a_library_the_definitions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    use(None, monkeypatch)
    with pytest.warns(RuntimeWarning, match="has no libvitlet_ort"):
        assert OrtEngine(MODEL).kernels == "functions"


def test_a_wrong_instruction_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITLET_ISA", "avx1024")
    path, reason = accelerate.usable_library()
    assert path is None and "VITLET_ISA" in reason


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    model = onnx.load(str(MODEL))
    (weight,) = (t for t in model.graph.initializer if t.name == "mixer_q_pool_weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((3, 3), np.float32), weight.name))
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(Exception, match=r"input 6 of shape \(20, 20, 1, 1\), got \(3, 3\)"):
        OrtEngine(tmp_path / "bad.onnx")


def test_weights_that_the_graph_computes(tmp_path: Path) -> None:
    model = onnx.load(str(MODEL))
    for node in model.graph.node:
        if node.op_type == "AdditiveTokenMixer":
            node.input[1] = "doubled"
    doubled = onnx.helper.make_node("Mul", ["mixer_qkv_weight", "factor"], ["doubled"])
    model.graph.node.insert(0, doubled)
    factor = onnx.helper.make_tensor_value_info("factor", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(factor)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(2, 20, 9, 7)).astype(np.float32)
    for value in (1.0, 2.0):
        feeds = {"x": x, "factor": np.array([value], np.float32)}
        fast, plain = (
            OrtEngine(tmp_path / "m.onnx", accelerate=on).run(feeds)["fp32"] for on in (True, False)
        )
        assert np.abs(fast - plain).max() < 1e-4 * np.abs(plain).max()


def test_the_model_in_git_is_the_one_its_script_makes() -> None:
    path = ROOT / "scripts" / "make_accelerate_check.py"
    spec = importlib.util.spec_from_file_location("make_accelerate_check", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert MODEL.read_bytes() == script.make().SerializeToString(deterministic=True)
