"""`vitlet inspect` of Core ML: storage, precision, sizes, what leaves the Neural Engine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from runtime_coreml import save

from vitlet.apps.readers import read
from vitlet.apps.readers.coreml_walk import Shape, Stored, storage
from vitlet.runtime.coreml.quiet import quiet_coremltools

with quiet_coremltools():
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol, types
    from coremltools.proto import Model_pb2

R = np.random.default_rng(0)


def half(*shape):
    return R.standard_normal(shape).astype(np.float16)


def mixed(x):
    """One convolution and one product in fp16, a sum in fp32."""
    y = mb.conv(x=mb.cast(x=x, dtype="fp16"), weight=half(8, 4, 3, 3), name="first")
    y = mb.matmul(x=mb.reshape(x=y, shape=[8, 36]), y=half(36, 64), name="second")
    return mb.reduce_sum(x=mb.cast(x=y, dtype="fp32"), axes=[0], name="third")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return save(mixed, [(1, 4, 8, 8)], tmp_path_factory.mktemp("m") / "m.mlpackage")


def test_operations_are_counted_by_the_precision_they_compute_in(package):
    found = read(package)
    assert found.compute == {
        "fp16": {"conv": 1, "reshape": 1, "matmul": 1},
        "fp32": {"reduce_sum": 1},
    }
    assert found.facts["computes"] == "3 operations in fp16, 1 operation in fp32"
    assert found.ops["cast"] == 2


def test_layers_are_listed_by_the_bytes_of_their_weights(package):
    sizes = [
        (row["op"], row["shape"], row["storage"], row["bytes"]) for row in read(package).layers
    ]
    assert sizes == [
        ("matmul", (36, 64), "float16", 2 * 36 * 64),
        ("conv", (8, 4, 3, 3), "float16", 2 * 8 * 4 * 9),
    ]
    assert read(package).dtypes == {"float16": [2, 2 * 36 * 64 + 2 * 8 * 4 * 9]}


def test_a_weight_used_twice_counts_once(tmp_path):
    def build(x):
        shared = mb.const(val=R.standard_normal((64, 64)).astype(np.float32), name="shared")
        return mb.matmul(x=mb.matmul(x=x, y=shared), y=shared)

    found = read(save(build, [(2, 64)], tmp_path / "m.mlpackage"))
    assert [(row["weight"], row["bytes"]) for row in found.layers] == [("shared", 4 * 64 * 64)]


def test_both_outputs_say_the_same(cli, package):
    shown = cli("inspect", package).out
    assert "3 operations in fp16, 1 operation in fp32" in shown and "36 x 64" in shown
    assert "off the Neural Engine: 1 reduce_sum: computes in fp32" in shown
    assert "typed-execution-example.html" in shown.replace("\n", "")
    data = json.loads(cli("inspect", package, "--json").out)
    assert data["compute"]["fp32"] == {"reduce_sum": 1} and data["layers"][0]["bytes"] == 4608
    (only,) = data["placement"]
    assert only["ops"] == {"reduce_sum": ["third"]} and only["source"].startswith("https://")


CASES = {
    "gathers": lambda x: mb.gather(x=x, indices=np.array([1, 0], np.int32), axis=1),
    "scatters": lambda x: mb.scatter(
        data=x, indices=np.array([1], np.int32), updates=half(1, 1, 4, 8).astype("f4"), axis=1
    ),
    "wider than 13": lambda x: mb.conv(x=x, weight=np.ones((2, 2, 3, 15), "f4"), pad_type="same"),
    "over 16384": lambda x: mb.reshape(x=mb.tile(x=x, reps=[1, 1, 600, 1]), shape=[1, 2, 1, 19200]),
    "arg-max": lambda x: mb.reduce_argmax(x=mb.tile(x=x, reps=[1, 1, 1, 300]), axis=3),
    "integer arithmetic": lambda x: mb.add(x=mb.cast(x=x, dtype="int32"), y=np.int32(1)),
    "branches": lambda x: mb.cond(
        pred=mb.greater(x=mb.reduce_sum(x=x), y=0.0),
        _true_fn=lambda: mb.add(x=x, y=x), _false_fn=lambda: mb.sub(x=x, y=x),
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_what_leaves_the_neural_engine_is_named_with_who_says_so(tmp_path, words):
    found = read(save(CASES[words], [(1, 2, 4, 8)], tmp_path / "m.mlpackage"))
    rules = [rule for rule in found.placement if words in rule["why"]]
    assert len(rules) == 1 and rules[0]["source"].startswith("https://"), found.placement


def test_nothing_is_said_against_a_plain_half_program(tmp_path):
    def build(x):
        y = mb.conv(x=mb.cast(x=x, dtype="fp16"), weight=half(2, 2, 3, 13), pad_type="same")
        return mb.cast(x=mb.relu(x=y), dtype="fp32")

    found = read(save(build, [(1, 2, 4, 8)], tmp_path / "m.mlpackage"))
    assert found.placement == []


def test_ranges_leave_the_neural_engine_and_lists_of_shapes_do_not(tmp_path):
    specs = [mb.TensorSpec((get_new_symbol(), 4))]

    def build(x):
        return mb.cast(x=mb.relu(x=mb.cast(x=x, dtype="fp16")), dtype="fp32")

    free = ct.TensorType(name="x", shape=(ct.RangeDim(1, 8, default=2), 4))
    listed = ct.TensorType(name="x", shape=ct.EnumeratedShapes([(1, 4), (8, 4)]))
    ranged = read(save(build, specs, tmp_path / "a.mlpackage", inputs=[free]))
    assert ranged.inputs[0].shape == ("1..8", 4)
    assert [rule["ops"] for rule in ranged.placement] == [{"input": ["x"]}]
    fixed = read(save(build, specs, tmp_path / "b.mlpackage", inputs=[listed]))
    assert fixed.inputs[0].shape == ("1|8", 4) and fixed.placement == []


def of(dtype, *sizes, stored=""):
    return Stored(stored, Shape(dtype, sizes))


@pytest.mark.parametrize(
    ("kind", "parts", "expected"),
    [
        ("affine_dequantize", {"quantized_data": of("int8", 4, 3), "scale": of("float16", 4)},
         "int8 linear"),
        ("blockwise_shift_scale", {"data": of("int8", 4, 6), "scale": of("float16", 4, 1)},
         "int8 linear"),
        ("blockwise_shift_scale", {"data": of("int4", 4, 64), "scale": of("float16", 4, 2)},
         "int4 in blocks of 32"),
        ("lut_to_dense", {"lut": of("float16", 16), "indices": of("uint8", 9)}, "palette 4 bit"),
        ("lut_to_dense", {"lut": of("float16", 1, 1, 64, 1)}, "palette 6 bit"),
        ("lut_to_dense", {"lut": of("float16", 1, 1, 4, 2)}, "palette 2 bit of 2 numbers"),
        ("lut_to_dense", {"lut": of("float16", 1, 1, 4, 1, stored="int8 linear")},
         "palette 2 bit, table int8 linear"),
        ("sparse_to_dense", {"nonzero_data": of("float16", 9)}, "sparse float16"),
        ("sparse_to_dense", {"nonzero_data": of("float16", 9, stored="sparse palette 4 bit")},
         "sparse palette 4 bit"),
        ("lut_to_sparse", {"lut": of("float16", 1, 16, 1)}, "sparse palette 4 bit"),
        ("sparse_blockwise_shift_scale", {"nonzero_data": of("int8", 9)}, "sparse int8 linear"),
        ("cast", {"source_val": of("float16", 9)}, "float16"),
    ],
)  # fmt: skip
def test_ways_to_store_a_weight_have_names(kind, parts, expected):
    assert storage(f"constexpr_{kind}", parts, Shape("float16", (4, 64))) == expected


def test_compressed_weights_are_counted_with_their_tables(tmp_path):
    codes = R.integers(0, 256, 64 * 64 // 2).astype(np.uint8)

    def old(x):
        w = mb.constexpr_lut_to_dense(
            indices=codes, lut=half(16), shape=np.array([64, 64], np.uint32), name="w_palettized"
        )
        return mb.matmul(x=mb.cast(x=x, dtype="fp16"), y=w)

    def new(x):
        data = mb.const(val=R.integers(-8, 8, (64, 64)).astype(np.int8), name="data")
        w = mb.constexpr_blockwise_shift_scale(data=data, scale=half(64, 2), name="w_quantized")
        return mb.matmul(x=mb.cast(x=x, dtype="fp16"), y=w)

    (row,) = read(save(old, [(2, 64)], tmp_path / "old.mlpackage", ios=16)).layers
    assert (row["weight"], row["storage"], row["shape"]) == ("w", "palette 4 bit", (64, 64))
    assert row["bytes"] == 2048 + 32
    (row,) = read(save(new, [(2, 64)], tmp_path / "new.mlpackage", ios=18)).layers
    assert (row["weight"], row["storage"]) == ("w", "int8 in blocks of 32")
    assert row["bytes"] == 64 * 64 + 2 * 64 * 2


def test_pictures_functions_states_and_labels_are_described(tmp_path, toy_bundle):
    about = read(toy_bundle / "model.mlpackage")
    assert about.facts["picture image"].startswith("pixel * 0.0039216 + 0")
    assert about.facts["labels"].startswith("5 (t-shirt, trouser")

    def remember(x, s):
        return mb.coreml_update_state(state=s, value=mb.add(x=mb.read_state(input=s), y=half(2)))

    specs = [mb.TensorSpec((2,)), mb.StateTensorSpec((2,), dtype=types.fp16)]
    state = read(save(remember, specs, tmp_path / "s.mlpackage", ios=18))
    assert [(s.name, s.dtype, s.shape) for s in state.states] == [("s", "float16", (2,))]
    assert "s float16 2" in state.facts["states"]
    for name in "ab":
        save(lambda x: mb.mul(x=x, y=half(64).astype("f4"), name="y"), [(64,)],
             tmp_path / f"{name}.mlpackage", 18)  # fmt: skip
    with quiet_coremltools():
        both = ct.utils.MultiFunctionDescriptor()
        for name in "ab":
            both.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
        both.default_function_name = "b"
        ct.utils.save_multifunction(both, str(tmp_path / "m.mlpackage"))
    several = read(tmp_path / "m.mlpackage")
    assert several.functions == ["a", "b"] and several.facts["functions"] == "a, b (default)"
    assert several.ops["mul"] == 2 and [spec.name for spec in several.inputs] == ["x"]


def test_labels_that_cannot_name_a_class_are_a_problem(tmp_path):
    config = ct.ClassifierConfig(["crane", "dog", "crane"])
    path = save(
        lambda x: mb.softmax(x=x), [(1, 3)], tmp_path / "m.mlpackage", classifier_config=config
    )
    assert "1 label given twice (crane)" in read(path).risks[0].text
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    for operation in block.operations:
        for binding in operation.inputs["classes"].arguments:
            del binding.value.immediateValue.list.values[:]
        for value in operation.attributes.values():
            del value.immediateValue.list.values[:]
    file.write_bytes(spec.SerializeToString())
    assert "a classifier without labels" in read(path).risks[0].text


def test_it_reads_without_torch_and_without_building_the_program(process, package):
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Block())
from vitlet.apps.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""
    done = process("inspect", package, code=code)
    assert done.returncode == 0, done.stderr
    assert "36 x 64" in done.stdout
