"""What vitlet.ops.cuda checks before a kernel is called: no GPU needed, and no build with CUDA."""

from __future__ import annotations

import ast
import re
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vitlet
from vitlet.errors import MissingDependencyError, ShapeError, UsageError
from vitlet.ops import cuda, pack_int8_weight, pack_shift_weight

MODULE = Path(__file__).parents[2] / "csrc" / "cuda" / "module.cpp"
WORKSPACE = 1000


class Fake:
    """Claims to lie on a GPU."""

    address = 0x1000

    def __init__(self, *shape: int, typestr: str = "<f4", **more: Any) -> None:
        Fake.address += 0x1000
        about = {"typestr": typestr, "shape": shape, "data": (Fake.address, False), "version": 2}
        self.__cuda_array_interface__ = about | more

    @property
    def pointer(self) -> int:
        return self.__cuda_array_interface__["data"][0]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Replace the extension by one that notes the kernels' arguments."""
    noted: list[tuple[Any, ...]] = []
    module = SimpleNamespace(device_count=lambda: 0, packed_mixer_size=lambda c: 7 * c)
    for name in ("shift_linear", "binary_linear_attention", "additive_token_mixer"):
        setattr(module, name, lambda *arguments: noted.append(arguments))
        setattr(module, f"{name}_workspace", lambda *sizes: WORKSPACE)
    monkeypatch.setitem(sys.modules, "vitlet._cuda", module)
    monkeypatch.setattr(vitlet, "_cuda", module, raising=False)
    return noted


def space(size: int = WORKSPACE) -> Fake:
    return Fake(size, typestr="|u1")


def linear_weight(outputs: int = 5, inputs: int = 9) -> cuda.DeviceLinearWeight:
    packed = pack_shift_weight(np.ones((outputs, inputs)))
    return cuda.DeviceLinearWeight.from_host(
        packed, lambda a: Fake(*a.shape, typestr="<f4" if a.dtype == np.float32 else "|u1")
    )


def test_shift_linear_hands_over_addresses_and_sizes(calls: list[tuple[Any, ...]]) -> None:
    x, bias, out, room, weight = Fake(3, 9), Fake(5), Fake(3, 5), space(), linear_weight()
    got = cuda.shift_linear(x, weight, bias, activation="gelu", out=out, workspace=room, stream=77)
    assert got is out
    head = (x.pointer, 3, 9, weight.panels.pointer, weight.scale.pointer, 5, bias.pointer)
    assert calls == [(*head, out.pointer, room.pointer, "shift", "gelu", 77)]


@pytest.mark.parametrize(
    "pack", [pack_shift_weight, lambda w: pack_shift_weight(w, wide=True), pack_int8_weight]
)
@pytest.mark.parametrize("outputs", [1, 32, 33, 64, 65])
@pytest.mark.parametrize("inputs", [0, 1, 8, 13])
def test_every_packed_weight_fits(
    pack: Any, outputs: int, inputs: int, calls: list[tuple[Any, ...]]
) -> None:
    weight = cuda.DeviceLinearWeight.from_host(
        pack(np.ones((outputs, inputs))),
        lambda a: Fake(*a.shape, typestr="<f4" if a.dtype == np.float32 else "|u1"),
    )
    cuda.shift_linear(Fake(2, inputs), weight, out=Fake(2, outputs), workspace=space(), stream=0)
    assert len(calls) == 1
    weight.panels.__cuda_array_interface__["shape"] = (
        weight.panels.__cuda_array_interface__["shape"][0] + 1,
    )
    with pytest.raises(ShapeError, match=r"expected panels"):
        cuda.shift_linear(
            Fake(2, inputs), weight, out=Fake(2, outputs), workspace=space(), stream=0
        )


def test_attention_hands_over_addresses_and_sizes(calls: list[tuple[Any, ...]]) -> None:
    q, k = Fake(2, 3, 10, 2, typestr="<u8"), Fake(2, 3, 10, 2, typestr="<i8")
    v, out, room, taps = Fake(2, 3, 10, 40), Fake(2, 3, 10, 40), space(), Fake(3, 9)
    cuda.binary_linear_attention(
        q, k, v, 70, signed=True, taps=taps, out=out, workspace=room, stream=5
    )
    sizes = (2, 3, 10, 70, 40, True)
    assert calls == [
        (q.pointer, k.pointer, v.pointer, *sizes, taps.pointer, out.pointer, room.pointer, 5)
    ]


@pytest.mark.parametrize(("layout", "shape"), [("nchw", (2, 4, 5, 6)), ("nhwc", (2, 5, 6, 4))])
def test_mixer_hands_over_addresses_and_sizes(
    layout: Any, shape: tuple[int, ...], calls: list[tuple[Any, ...]]
) -> None:
    x, out, packed, room = Fake(*shape), Fake(*shape), Fake(28), space()
    cuda.additive_token_mixer(x, packed, layout=layout, out=out, workspace=room)
    pointers = (packed.pointer, out.pointer, room.pointer)
    assert calls == [(x.pointer, 2, 4, 5, 6, *pointers, layout, 0)]


def test_an_empty_array_has_no_address(calls: list[tuple[Any, ...]]) -> None:
    cuda.additive_token_mixer(Fake(0, 4, 5, 6), Fake(28), out=Fake(0, 4, 5, 6), workspace=space())
    assert calls[0][0] == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 9), np.float32), "got ndarray"),
        (Fake(3, 8), r"float32 GPU array \(any, 9\), got float32 \(3, 8\)"),
        (Fake(9), r"got float32 \(9,\)"),
        (Fake(3, 9, typestr="<f2"), "got <f2"),
        (Fake(3, 9, strides=(4, 12)), r"with strides \(4, 12\)"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(
    x: Any, message: str, calls: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(ShapeError, match=r"\[shift_linear\] expected x .*" + message):
        cuda.shift_linear(x, linear_weight(), out=Fake(3, 5), workspace=space())
    assert not calls


def test_strides_of_a_contiguous_array_are_accepted(calls: list[tuple[Any, ...]]) -> None:
    x = Fake(1, 9, strides=(1234, 4))  # a stride of one row does not matter
    cuda.shift_linear(x, linear_weight(), out=Fake(1, 5, strides=(20, 4)), workspace=space())
    assert len(calls) == 1


def test_a_small_workspace_and_a_read_only_result_are_refused(
    calls: list[tuple[Any, ...]],
) -> None:
    x, weight = Fake(3, 9), linear_weight()
    with pytest.raises(ShapeError, match="expected a workspace of 1000 bytes, got 999"):
        cuda.shift_linear(x, weight, out=Fake(3, 5), workspace=space(999))
    with pytest.raises(ShapeError, match="to write to, got a read-only one"):
        cuda.shift_linear(x, weight, out=Fake(3, 5, data=(4096, True)), workspace=space())
    with pytest.raises(ShapeError, match=r"expected out.*only for torch tensors"):
        cuda.shift_linear(x, weight, workspace=space())
    assert not calls


def test_wrong_names_and_kinds_are_refused(calls: list[tuple[Any, ...]]) -> None:
    x: Any = Fake(1, 2, 3, 4)
    with pytest.raises(UsageError, match='"nchw" or "nhwc"'):
        cuda.additive_token_mixer(x, Fake(14), layout="chwn")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected a DeviceLinearWeight, got ndarray"):
        cuda.shift_linear(x, np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="expected a ShiftWeight or Int8Weight"):
        cuda.DeviceLinearWeight.from_host(np.ones(3), Fake)  # type: ignore[arg-type]


def test_what_cuda_says_becomes_one_of_our_errors(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("[shift_linear] CUDA: out of luck")

    monkeypatch.setattr(sys.modules["vitlet._cuda"], "shift_linear", fails)
    with pytest.raises(UsageError, match="out of luck"):
        cuda.shift_linear(Fake(3, 9), linear_weight(), out=Fake(3, 5), workspace=space())


def test_a_build_without_cuda_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vitlet._cuda", None)
    monkeypatch.delattr(vitlet, "_cuda", raising=False)
    with pytest.raises(MissingDependencyError, match="VITLET_CUDA=ON"):
        cuda.shift_linear_workspace(1, 1)
    assert "VITLET_CUDA=ON" in cuda.unavailable_reason()


def test_the_stub_has_what_the_module_defines() -> None:
    stub = ast.parse((files("vitlet") / "_cuda.pyi").read_text(encoding="utf-8"))
    named = {
        node.name: [argument.arg for argument in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    defined = {
        name: re.findall(r'arg\("(\w+)"\)', rest)
        for name, rest in re.findall(r'm\.def\("(\w+)"(.*?)\);', MODULE.read_text(), re.DOTALL)
    }
    assert named == defined
