from __future__ import annotations

import pytest

from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.options import resolve
from vitlet.export.targets import ONNX_CONSUMERS, OPSETS, parse_batch, parse_targets


def test_aliases_all_and_comma_lists_give_each_target_once_in_order() -> None:
    assert parse_targets("ios,onnx, Apple") == ("onnx", "coreml")
    assert parse_targets(["all"]) == ("onnx", "coreml", "tvm")


def test_an_unknown_target_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="unknown target 'onx': did you mean 'onnx'"):
        parse_targets("onx")


@pytest.mark.parametrize(
    ("text", "batch"),
    [("1", 1), ("1:8", (1, 8)), ("dyn", "dyn"), ((2, 2), 2), ("4:4", 4), (3, 3)],
)
def test_batches_are_read_as_people_write_them(text: str, batch: object) -> None:
    assert parse_batch(text) == batch


@pytest.mark.parametrize("text", ["0", "8:1", "1:2:3", "many", "-1", 0, (0, 4), 5000])
def test_senseless_batches_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="batch must be"):
        parse_batch(text)


def test_each_target_has_its_own_defaults() -> None:
    options = resolve("all")
    assert options.precision == {"onnx": "fp32", "coreml": "fp16", "tvm": "fp32"}
    assert options.preprocess == {"onnx": "none", "coreml": "image-type", "tvm": "none"}
    assert (options.opset, options.ios, options.machines) == (20, 16, (None,))


def test_a_tensor_input_is_what_core_ml_has_for_more_than_one_image() -> None:
    assert resolve("coreml", batch=4).preprocess == {"coreml": "none"}
    with pytest.raises(UnsupportedError, match="one picture at a time"):
        resolve("coreml", batch=4, preprocess="image-type")


def test_settings_can_be_given_per_target() -> None:
    options = resolve("all", precision="onnx=fp16,ios=palette4", preprocess="onnx=in-graph")
    assert options.precision == {"onnx": "fp16", "coreml": "palette4", "tvm": "fp32"}
    assert options.preprocess["onnx"] == "in-graph"
    with pytest.raises(UsageError, match="'tvm', which is not among the targets onnx"):
        resolve("onnx", precision="tvm=fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": "tvm", "opset": 17}, "opset=17 means nothing to tvm: taken by onnx"),
        ({"targets": "onnx", "ios": 17}, "ios=17 means nothing to onnx: taken by coreml"),
        ({"targets": "onnx", "triple": "x"}, "triple='x' means nothing to onnx: taken by tvm"),
        ({"targets": "coreml", "ios": 12}, "coreml does not take ios=12: it takes 16, 17, 18"),
        ({"targets": "onnx", "opset": 11}, "onnx does not take opset=11: it takes 17, 18"),
        ({"targets": "coreml", "batch": "dyn"}, "coreml does not take batch 'dyn'"),
        ({"targets": "onnx,coreml", "precision": "int8"}, "onnx does not take precision 'int8'"),
        ({"targets": "tvm", "preprocess": "in-graph"}, "tvm does not take preprocess='in-graph'"),
        ({"targets": "coreml", "palette_mode": "kmeans"}, "means nothing to precision 'fp16'"),
    ],
)
def test_what_a_target_cannot_take_is_refused_by_name(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        resolve(**arguments)  # type: ignore[arg-type]


def test_every_consumer_has_an_opset_that_is_offered() -> None:
    assert set(ONNX_CONSUMERS.values()) <= set(OPSETS)
    assert resolve("onnx", opset="onnxruntime-web").opset == 17
    assert resolve("onnx", opset="18").opset == 18
