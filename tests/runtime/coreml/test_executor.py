"""The executor around the operations: modes, pictures, shapes, state, functions, bad files."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_coreml import save

from vitlet.errors import CorruptInputError, ShapeError, UnsupportedError, UsageError, VitletError
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml import Value
from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from coremltools.proto import Model_pb2

R = np.random.default_rng(2)
WEIGHT = R.standard_normal((5, 64)).astype(np.float16)


def half_program(x: Any) -> Any:
    product = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=WEIGHT, name="product")
    return mb.cast(x=product, dtype="fp32", name="y")


@pytest.fixture
def half_package(tmp_path: Path) -> Path:
    return save(half_program, [(3, 64)], tmp_path / "half.mlpackage")


def test_modes_differ_in_rounding_only(half_package: Path) -> None:
    x = (50 * R.standard_normal((3, 64))).astype(np.float32)
    run = {
        mode: CoreMLExecutor(half_package, mode).run({"x": x})["y"]
        for mode in ("fp32", "declared", "stress")
    }
    rounded = x.astype(np.float16).astype(np.float32)
    weight = WEIGHT.astype(np.float32)
    np.testing.assert_allclose(run["fp32"], x @ weight.T, rtol=1e-4, atol=1e-3)
    declared = (rounded @ weight.T).astype(np.float16)
    np.testing.assert_allclose(run["declared"], declared.astype(np.float32), rtol=1e-3)
    parts = [(rounded[:, a : a + 32] @ weight[:, a : a + 32].T).astype(np.float16) for a in (0, 32)]
    np.testing.assert_array_equal(run["stress"], (parts[0] + parts[1]).astype(np.float32))
    assert not np.array_equal(run["fp32"], run["declared"])


def test_stress_overflows_where_a_running_sum_does(half_package: Path) -> None:
    x = np.where(WEIGHT[0] > 0, 4000.0, -4000.0).astype(np.float32)
    x[32:] *= -1  # the second half takes back what the first half added
    feeds = {"x": np.stack([x] * 3)}
    assert np.isfinite(CoreMLExecutor(half_package, "declared").run(feeds)["y"][:, 0]).all()
    assert not np.isfinite(CoreMLExecutor(half_package, "stress").run(feeds)["y"][:, 0]).any()


def test_running_twice_gives_the_same_bits_and_tells_every_value(half_package: Path) -> None:
    executor = CoreMLExecutor(half_package, "declared")
    feeds = {"x": R.standard_normal((3, 64)).astype(np.float32)}
    seen: list[Value] = []
    first = executor.run(feeds, watch=seen.append)["y"]
    assert first.tobytes() == executor.run(feeds)["y"].tobytes()
    assert [(v.op, v.declared) for v in seen] == [
        ("cast", "fp16"), ("linear", "fp16"), ("cast", "fp32"),
    ]  # fmt: skip
    np.testing.assert_array_equal(seen[-1].array, first)


def test_values_die_after_their_last_use(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for _ in range(30):
            x = mb.add(x=x, y=1.0)
        return x

    executor = CoreMLExecutor(save(build, [(4,)], tmp_path / "m.mlpackage"))
    steps = executor._block.steps
    freed = [number for step in steps for number in step.frees]
    assert len(freed) == 30 and all(len(step.frees) == 1 for step in steps)


@pytest.mark.parametrize("labels", [["cat", "dog", "eel"], [7, 8, 9]])
def test_a_classifier_gives_the_best_class_and_all_probabilities(
    tmp_path: Path, labels: list[Any]
) -> None:
    config = ct.ClassifierConfig(labels)
    path = save(
        lambda x: mb.softmax(x=x), [(1, 3)], tmp_path / "m.mlpackage", classifier_config=config
    )
    executor = CoreMLExecutor(path)
    result = executor.run({"x": np.log(np.array([[1, 5, 2]], np.float32))})
    assert result["classLabel"] == labels[1]
    assert result["classLabel_probs"] == pytest.approx(
        {labels[0]: 1 / 8, labels[1]: 5 / 8, labels[2]: 2 / 8}
    )


def test_a_classifier_without_labels_is_refused(tmp_path: Path) -> None:
    config = ct.ClassifierConfig(["cat", "dog"])
    path = save(
        lambda x: mb.softmax(x=x), [(1, 2)], tmp_path / "m.mlpackage", classifier_config=config
    )

    def change(spec: Any) -> None:
        block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
        for operation in block.operations:
            if operation.type == "classify":
                classes = operation.inputs["classes"].arguments[0].value
                del classes.immediateValue.list.values[:]

    edit(path, change)
    with pytest.raises(CorruptInputError):
        CoreMLExecutor(path).run({"x": np.ones((1, 2), np.float32)})


def state_program(x: Any, s: Any) -> Any:
    total = mb.add(x=mb.cast(x=x, dtype="fp16"), y=mb.read_state(input=s))
    return mb.cast(x=mb.coreml_update_state(state=s, value=total), dtype="fp32", name="y")


def test_state_is_kept_by_its_owner(tmp_path: Path) -> None:
    specs = [mb.TensorSpec((2,)), mb.StateTensorSpec((2,), dtype=types.fp16)]
    executor = CoreMLExecutor(save(state_program, specs, tmp_path / "m.mlpackage", ios=18))
    x = np.array([1, 2], np.float32)
    mine, yours = executor.make_state(), executor.make_state()
    for count in (1, 2, 3):
        np.testing.assert_array_equal(executor.run({"x": x}, mine)["y"], count * x)
    np.testing.assert_array_equal(executor.run({"x": x}, yours)["y"], x)
    np.testing.assert_array_equal(executor.run({"x": x})["y"], x)
    np.testing.assert_array_equal(mine.read("s"), 3 * x)
    mine.write("s", 10 * x)
    np.testing.assert_array_equal(executor.run({"x": x}, mine)["y"], 11 * x)
    with pytest.raises(ShapeError, match="expected the state s"):
        mine.write("s", np.zeros(3, np.float32))


def test_functions_of_a_package_are_chosen_by_name(tmp_path: Path) -> None:
    def scaled(factor: float) -> Any:
        return lambda x: mb.mul(x=x, y=factor, name="y")

    for name, factor in (("a", 2.0), ("b", 3.0)):
        save(scaled(factor), [(2,)], tmp_path / f"{name}.mlpackage", 18)
    with quiet_coremltools():
        both = ct.utils.MultiFunctionDescriptor()
        for name in "ab":
            both.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
        both.default_function_name = "b"
        ct.utils.save_multifunction(both, str(tmp_path / "m.mlpackage"))
    x = np.ones(2, np.float32)
    executor = CoreMLExecutor(tmp_path / "m.mlpackage", function="a")
    assert set(executor.functions) == {"a", "b"} and executor.run({"x": x})["y"][0] == 2
    assert CoreMLExecutor(tmp_path / "m.mlpackage").run({"x": x})["y"][0] == 3
    with pytest.raises(UsageError, match="no function 'c'; it has a, b"):
        CoreMLExecutor(tmp_path / "m.mlpackage", function="c")


def loop_program(x: Any) -> Any:
    def go(a: Any, b: Any) -> Any:
        return mb.less(x=mb.reduce_sum(x=a), y=10.0)

    def turn(a: Any, b: Any) -> Any:
        return mb.add(x=a, y=1.0), mb.mul(x=b, y=2.0)

    a, b = mb.while_loop(_cond=go, _body=turn, loop_vars=(x, x))
    large = mb.greater(x=mb.reduce_sum(x=b), y=100.0)
    return mb.cond(
        pred=large, _true_fn=lambda: mb.add(x=a, y=x), _false_fn=lambda: mb.sub(x=b, y=a)
    )


@pytest.mark.parametrize(("start", "end"), [(1.0, 11.0), (7.5, 60.0 - 10.5)])
def test_loops_and_branches(tmp_path: Path, start: float, end: float) -> None:
    executor = CoreMLExecutor(save(loop_program, [(1,)], tmp_path / "m.mlpackage"))
    (result,) = executor.run({"x": np.array([start], np.float32)}).values()
    assert result == end


def test_a_loop_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitlet.runtime.coreml.executor.LOOP_LIMIT", 50)
    executor = CoreMLExecutor(save(loop_program, [(1,)], tmp_path / "m.mlpackage"))
    with pytest.raises(CorruptInputError, match=r"while_loop at .*not ended after 50 turns"):
        executor.run({"x": np.array([-1e9], np.float32)})


def test_unknown_operations_are_all_named_with_their_places(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        noise = mb.random_normal(shape=[2], mean=0.0, stddev=1.0, name="noise")
        more = mb.random_uniform(shape=[2], low=0.0, high=1.0, name="more")
        return mb.add(x=mb.add(x=x, y=noise), y=more)

    path = save(build, [(2,)], tmp_path / "m.mlpackage")
    with pytest.raises(UnsupportedError) as caught:
        CoreMLExecutor(path)
    assert caught.value.exit_code == 3
    assert "random_normal at noise (main block)" in str(caught.value)
    assert "random_uniform at more (main block)" in str(caught.value)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    change(spec)
    file.write_bytes(spec.SerializeToString())


def operations(spec: Any) -> Any:
    return spec.mlProgram.functions["main"].block_specializations["CoreML7"].operations


def test_an_absurd_size_is_refused_before_it_is_made(tmp_path: Path) -> None:
    path = save(
        lambda x: mb.mul(x=x, y=mb.fill(shape=[1, 2], value=1.0)),
        [(1, 2)],
        tmp_path / "m.mlpackage",
    )

    def change(spec: Any) -> None:
        for operation in operations(spec):
            if operation.type == "const" and "shape" in operation.outputs[0].name:
                stored = operation.attributes["val"].immediateValue.tensor.ints
                stored.values[:] = [1 << 20, 1 << 20]

    edit(path, change)
    with pytest.raises(CorruptInputError, match=r"fill makes .* 1,099,511,627,776 elements"):
        CoreMLExecutor(path)


def test_the_limit_holds_for_sizes_that_depend_on_the_input(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        size = mb.cast(x=x, dtype="int32")
        return mb.fill(shape=mb.concat(values=[size, size], axis=0), value=1.0)

    executor = CoreMLExecutor(save(build, [(1,)], tmp_path / "m.mlpackage"))
    (made,) = executor.run({"x": np.array([3], np.float32)}).values()
    assert made.shape == (3, 3)
    with pytest.raises(CorruptInputError, match=r"fill at .*takes 40,000,000,000 bytes"):
        executor.run({"x": np.array([1e5], np.float32)})


def test_a_program_with_a_cycle_is_refused(half_package: Path) -> None:
    def change(spec: Any) -> None:
        listed = operations(spec)
        for operation in listed:
            if operation.type == "linear":
                operation.inputs["x"].arguments[0].name = "y"  # what is computed from it

    edit(half_package, change)
    with pytest.raises(CorruptInputError, match="y not found"):
        CoreMLExecutor(half_package)


@pytest.mark.parametrize("keep", [0, 10, 300])
@pytest.mark.parametrize("name", ["model.mlmodel", "weights/weight.bin"])
def test_truncated_files_are_refused(tmp_path: Path, name: str, keep: int) -> None:
    weight = R.standard_normal((64, 64)).astype(np.float16)

    def build(x: Any) -> Any:
        return mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=weight)

    path = save(build, [(3, 64)], tmp_path / "m.mlpackage")
    file = path / "Data/com.apple.CoreML" / name
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises((CorruptInputError, UnsupportedError)) as caught:
        CoreMLExecutor(path)
    assert caught.value.exit_code in (3, 6)


@pytest.mark.parametrize("seed", range(20))
def test_mutated_files_are_refused_or_run(half_package: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    name = ("model.mlmodel", "weights/weight.bin")[seed % 2]
    file = half_package / "Data/com.apple.CoreML" / name
    data = bytearray(file.read_bytes())
    for place in random.integers(0, len(data), 3):
        data[place] ^= 1 << int(random.integers(8))
    file.write_bytes(bytes(data))
    # A flipped weight is a weight: only the bundle's checksum finds it. All else is an error.
    with contextlib.suppress(VitletError):
        executor = CoreMLExecutor(half_package, "declared")
        executor.run({"x": np.ones((3, 64), np.float32)})


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    spec = Model_pb2.Model()
    spec.specificationVersion = 4
    spec.neuralNetwork.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(UnsupportedError, match="holds a neuralNetwork, not an ML program"):
        CoreMLExecutor(tmp_path / "old.mlmodel")
    (tmp_path / "x.mlpackage").mkdir()
    with pytest.raises(CorruptInputError, match="not a sound Core ML package"):
        CoreMLExecutor(tmp_path / "x.mlpackage")
    with pytest.raises(UsageError, match="no such file"):
        CoreMLExecutor(tmp_path / "none.mlpackage")


def test_wrong_names_types_shapes_and_modes_are_refused(half_package: Path) -> None:
    executor = CoreMLExecutor(half_package)
    x = np.zeros((3, 64), np.float32)
    for feeds in ({}, {"z": x}, {"x": x, "z": x}):
        with pytest.raises(ShapeError, match=r"expected the inputs x: float32 \(3, 64\); got"):
            executor.run(feeds)
    for wrong in (x.astype(np.float64), x[:2], x.tolist()):
        with pytest.raises(ShapeError, match=r"expected x: float32 \(3, 64\); got"):
            executor.run({"x": wrong})
    with pytest.raises(UsageError, match="mode must be one of fp32, declared, stress"):
        CoreMLExecutor(half_package, "int8")


def test_importing_vitlet_runtime_imports_neither_torch_nor_coremltools() -> None:
    code = (
        "import sys, vitlet.runtime, vitlet.runtime.coreml; vitlet.runtime.CoreMLExecutor;"
        "print([n for n in ('torch', 'coremltools') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_copy_elsewhere_runs_too(half_package: Path, tmp_path: Path) -> None:
    shutil.move(half_package, tmp_path / "moved.mlpackage")
    assert CoreMLExecutor(tmp_path / "moved.mlpackage").run({"x": np.zeros((3, 64), np.float32)})
