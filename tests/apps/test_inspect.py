"""`vitlet inspect`: right about good files, one clear line about bad ones, nothing executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitlet.apps.readers import read
from vitlet.errors import CorruptInputError, UsageError
from vitlet.runtime.safetensors import save_file


def library(bundle: Path) -> Path:
    return next(bundle.glob("*.tvm.so"))


def save_onnx(path: Path, nodes: list, weights: dict[str, np.ndarray], opset: int = 20, **given):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given.pop("shape", ["n", 2]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *given.pop("domains", [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def matmul(path: Path, weight: np.ndarray) -> Path:
    return save_onnx(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})


def risks(path: Path) -> str:
    return "\n".join(f"{risk.level}: {risk.text}" for risk in read(path).risks)


def test_an_onnx_file_is_described(toy_bundle):
    contents = read(toy_bundle / "model.onnx")
    assert contents.format == "ONNX"
    assert [(s.name, s.dtype, s.shape) for s in contents.inputs] == [
        ("image", "float32", (1, 3, 32, 32))
    ]
    assert contents.ops["Conv"] == 1 and contents.ops["LayerNormalization"] == 1
    assert "BatchNormalization" not in contents.ops
    assert not [risk for risk in contents.risks if risk.level == "problem"]


def test_a_core_ml_package_is_described(toy_bundle):
    contents = read(toy_bundle / "model.mlpackage")
    assert contents.inputs[0].dtype == "image (rgb)" and contents.inputs[0].shape == (32, 32)
    assert contents.ops["conv"] == 1
    assert contents.dtypes["float16"][0] > 0
    assert "iOS 16" in contents.facts["specification"]


def test_a_tvm_library_is_described_without_loading_it(toy_bundle):
    contents = read(library(toy_bundle))
    assert contents.facts["machine"] in ("x86_64", "aarch64")
    assert any("conv" in function for function in contents.ops)


def test_a_bundle_is_described(toy_bundle):
    contents = read(toy_bundle)
    assert {part["target"] for part in contents.parts} == {"onnx", "coreml", "tvm"}
    assert contents.facts["labels"].startswith("5 (t-shirt, trouser")


def test_a_checkpoint_is_described(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(
        {"a.weight": np.zeros((2, 3), np.float32), "a.bn.running_var": np.ones(3, "f2")}, path
    )
    contents = read(path)
    assert contents.dtypes == {"float32": [1, 24], "float16": [1, 6]}
    assert "BatchNorm" in risks(path)


def test_leftover_batch_norms_are_a_problem(tmp_path):
    ones = {name: np.ones(2, np.float32) for name in ("a", "b", "c", "d")}
    node = helper.make_node("BatchNormalization", ["x", *ones], ["y"])
    assert "problem: 1 BatchNormalization not folded" in risks(
        save_onnx(tmp_path / "m.onnx", [node], ones)
    )


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "NaN or infinity"), (np.inf, "NaN"), (7e4, "beyond float16")]
)
def test_weights_that_mean_trouble_are_a_problem(tmp_path, value, words):
    weight = np.full((2, 2), value, np.float32)
    assert words in risks(matmul(tmp_path / "m.onnx", weight))
    save_file({"w": weight}, tmp_path / "m.safetensors")
    assert words in risks(tmp_path / "m.safetensors")


def test_free_sizes_and_repeated_weights_are_noted(tmp_path):
    weight = np.ones((2, 200), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    found = risks(save_onnx(tmp_path / "m.onnx", nodes, {"w": weight, "v": weight}))
    assert "x has free sizes: n" in found and "stored twice" in found


def test_operators_of_other_domains_are_named(tmp_path):
    node = helper.make_node("FusedGelu", ["x"], ["y"], domain="com.example")
    domains = [helper.make_opsetid("com.example", 1)]
    path = save_onnx(tmp_path / "m.onnx", [node], {}, domains=domains)
    assert read(path).custom_ops == ["com.example::FusedGelu"]
    assert "com.example::FusedGelu" in risks(path)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", ""])
def test_external_data_outside_the_folder_is_a_problem_and_is_not_read(tmp_path, location):
    path = matmul(tmp_path / "m.onnx", np.ones((2, 2), np.float32))
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    assert "problem: external data outside" in risks(path)


def test_what_the_onnx_checker_says_is_passed_on(tmp_path):
    path = save_onnx(tmp_path / "m.onnx", [helper.make_node("Nope", ["x"], ["y"])], {})
    assert "problem: onnx.checker: No Op registered for Nope" in risks(path)


def test_a_weight_with_too_few_bytes_is_refused(tmp_path):
    path = matmul(tmp_path / "m.onnx", np.ones((2, 2), np.float32))
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = b"123"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptInputError, match="weight w"):
        read(path)


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.7, 0.99])
def test_a_truncated_onnx_file_is_refused(toy_bundle, tmp_path, keep):
    data = (toy_bundle / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptInputError, match="not a sound ONNX model"):
        read(path)


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.99])
def test_a_truncated_library_is_refused(toy_bundle, tmp_path, keep):
    data = library(toy_bundle).read_bytes()
    path = tmp_path / "cut.tvm.so"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptInputError):
        read(path)


@pytest.mark.parametrize("keep", [0, 7, 8, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_refused(toy_bundle, tmp_path, keep):
    data = (toy_bundle / "golden.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(CorruptInputError, match="not a sound safetensors file"):
        read(path)


@pytest.fixture
def package(toy_bundle, tmp_path):
    return Path(shutil.copytree(toy_bundle / "model.mlpackage", tmp_path / "m.mlpackage"))


@pytest.mark.parametrize("name", ["Manifest.json", "model.mlmodel", "weight.bin"])
@pytest.mark.parametrize("keep", [None, 0, 0.5])
def test_a_damaged_core_ml_package_is_refused(package, name, keep):
    (path,) = package.rglob(name)
    data = path.read_bytes()
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptInputError, match=r"m\.mlpackage"):
        read(package)


def test_a_core_ml_manifest_that_leaves_the_package_is_refused(package):
    path = package / "Manifest.json"
    manifest = json.loads(path.read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../../etc/passwd"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptInputError, match="outside"):
        read(package)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("a.pt", Bomb()), ("b.pt", {"model": {"w": Bomb()}})):
        Path(name).write_bytes(pickle.dumps(content))
        with pytest.raises(CorruptInputError):
            read(Path(name))
    assert not Path("exploded").exists()


def test_a_file_of_no_known_kind_is_a_usage_error(tmp_path):
    path = tmp_path / "x.tflite"
    path.touch()
    with pytest.raises(UsageError, match="cannot tell what"):
        read(path)
