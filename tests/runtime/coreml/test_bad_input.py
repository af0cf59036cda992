"""Damaged and absurd packages: one clear error, soon, and without the memory that they ask for."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_coreml import save

from vitlet.apps.readers import read
from vitlet.errors import CorruptInputError, UnsupportedError, VitletError
from vitlet.export.coreml_program import read_program
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    from coremltools.converters.mil import Builder as mb
    from coremltools.proto import MIL_pb2, Model_pb2

R = np.random.default_rng(4)
DATA = "Data/com.apple.CoreML"
HUGE = 1 << 20  # squared, 2^40


def edit(path: Path, change: Callable[[Any], None]) -> None:
    file = path / DATA / "model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    change(block.operations)
    file.write_bytes(spec.SerializeToString())


def of(operations: Any, kind: str) -> Any:
    return next(operation for operation in operations if operation.type == kind)


def set_ints(operations: Any, kind: str, argument: str, numbers: list[int]) -> None:
    name = of(operations, kind).inputs[argument].arguments[0].name
    for operation in operations:
        if operation.outputs[0].name == name:
            operation.attributes["val"].immediateValue.tensor.ints.values[:] = numbers


def in_place(operations: Any, kind: str, argument: str, numbers: list[int]) -> None:
    """Bind a constant to the argument itself, as iOS 18 programs do."""
    (binding,) = of(operations, kind).inputs[argument].arguments
    value = MIL_pb2.Value()
    value.type.tensorType.dataType, value.type.tensorType.rank = MIL_pb2.INT32, 1
    value.type.tensorType.dimensions.add().constant.size = len(numbers)
    value.immediateValue.tensor.ints.values[:] = numbers
    binding.value.CopyFrom(value)


ABSURD: dict[str, tuple[Callable[[Any], Any], Callable[[Any], None]]] = {
    "fill": (
        lambda x: mb.add(x=x, y=mb.fill(shape=[1, 2], value=1.0)),
        lambda ops: set_ints(ops, "fill", "shape", [HUGE, HUGE]),
    ),
    "fill in place": (
        lambda x: mb.add(x=x, y=mb.fill(shape=[1, 2], value=1.0)),
        lambda ops: in_place(ops, "fill", "shape", [HUGE, HUGE]),
    ),
    "tile": (
        lambda x: mb.add(x=x, y=mb.tile(x=np.ones((1, 2), np.float32), reps=[1, 1])),
        lambda ops: set_ints(ops, "tile", "reps", [HUGE, HUGE]),
    ),
    "pad": (
        lambda x: mb.add(x=x, y=mb.pad(x=np.ones((1, 2), np.float32), pad=[0, 0, 0, 0])),
        lambda ops: set_ints(ops, "pad", "pad", [HUGE, 0, HUGE, 0]),
    ),
    "declared": (
        lambda x: mb.relu(x=x),
        lambda ops: [d.constant.__setattr__("size", HUGE)
                     for d in of(ops, "relu").outputs[0].type.tensorType.dimensions],
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", [CoreMLExecutor, read_program], ids=["execute", "verify"])
@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_are_refused_before_they_are_made(
    tmp_path: Path, name: str, reader: Callable[[Path], Any]
) -> None:
    build, change = ABSURD[name]
    path = save(build, [(1, 2)], tmp_path / "m.mlpackage")
    edit(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptInputError, match=r"elements, the limit is"):
        reader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
    assert read(path).ops  # inspect makes nothing, so it can tell what is in there


def declare_small(operation: Any) -> None:
    for dimension in operation.outputs[0].type.tensorType.dimensions:
        dimension.constant.size = 1


@pytest.mark.parametrize("product", ["mul", "matmul"])
def test_products_of_two_constants_are_measured_too(tmp_path: Path, product: str) -> None:
    def build(x: Any) -> Any:
        # Small here; the limit is lowered instead.
        long, wide = np.ones((300, 1), np.float32), np.ones((1, 300), np.float32)
        return mb.add(x=x, y=getattr(mb, product)(x=long, y=wide))

    path = save(build, [(300, 300)], tmp_path / "m.mlpackage")
    assert CoreMLExecutor(path, memory_limit=4 * 90_000)
    edit(path, lambda ops: declare_small(of(ops, product)))  # what is really made counts
    with pytest.raises(CorruptInputError, match=f"{product} makes .* 90,000 elements"):
        CoreMLExecutor(path, memory_limit=4 * 89_999)


def test_a_gather_from_a_large_table_is_not_absurd(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        table = R.standard_normal((5000, 2)).astype(np.float32)
        rows = mb.gather(x=table, indices=np.arange(60, dtype=np.int32), axis=0)
        return mb.add(x=x, y=rows)

    path = save(build, [(60, 2)], tmp_path / "m.mlpackage")
    assert CoreMLExecutor(path, memory_limit=4 * 10_000)  # the table, not 60 times its length


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(x: Any) -> Any:
        y = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=R.standard_normal((8, 64)).astype("f2"))
        y = mb.softmax(x=mb.reshape(x=y, shape=[3, 2, 4]), axis=-1)
        return mb.cast(x=mb.reduce_mean(x=y, axes=[1]), dtype="fp32", name="y")

    return save(build, [(3, 64)], tmp_path_factory.mktemp("w") / "m.mlpackage")


@pytest.mark.parametrize("name", ["model.mlmodel", "weights/weight.bin"])
def test_two_hundred_mutations_are_refused_or_give_numbers(
    whole: Path, tmp_path: Path, name: str
) -> None:
    """Flips, cuts, insertions and doublings; what is not refused runs, as a changed weight does."""
    path = Path(shutil.copytree(whole, tmp_path / "m.mlpackage"))
    file = path / DATA / name
    data = file.read_bytes()
    codes: set[int] = set()
    for seed in range(100):
        random = np.random.default_rng(seed)
        at, end = sorted(int(n) for n in random.integers(0, len(data), 2))
        changed = {
            0: data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :],
            1: data[:at],
            2: data[:at] + random.bytes(5) + data[at:],
            3: data[:end] + data[at:end] + data[end:],
        }[seed % 4]
        file.write_bytes(changed)
        for look in (read, CoreMLExecutor):
            try:
                made = look(path)
                if isinstance(made, CoreMLExecutor):
                    made.run({f.name: np.ones(f.shape, f.dtype) for f in made.inputs})
            except VitletError as error:
                codes.add(error.exit_code)
                assert len(str(error).splitlines()) == 1, str(error)
    assert 6 in codes and codes <= {2, 3, 6}


def test_neural_networks_and_cycles_are_told_apart_from_damage(whole: Path, tmp_path: Path) -> None:
    spec = Model_pb2.Model()
    spec.specificationVersion = 4
    spec.neuralNetwork.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(spec.SerializeToString())
    for look in (read, CoreMLExecutor, read_program):
        with pytest.raises(UnsupportedError, match="neuralNetwork, not an ML program"):
            look(tmp_path / "old.mlmodel")
    path = Path(shutil.copytree(whole, tmp_path / "m.mlpackage"))

    def change(operations: Any) -> None:
        of(operations, "linear").inputs["x"].arguments[0].name = "y"

    edit(path, change)
    for look in (read, CoreMLExecutor, read_program):
        with pytest.raises(CorruptInputError, match=r"'?y'? (before it is computed|not found)"):
            look(path)
