"""Our operators as TensorIR: held to the numpy operators, on this processor and as CUDA loops."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitlet import ops
from vitlet.errors import ShapeError
from vitlet.export.tvm_ops import additive_token_mixer as mixer
from vitlet.export.tvm_ops import binary_linear_attention as attention
from vitlet.export.tvm_ops import byte_dot
from vitlet.export.tvm_ops import shift_linear as linear
from vitlet.export.tvm_schedule import tile_for
from vitlet.export.tvm_targets import find_machine
from vitlet.ops.additive_token_mixer import MixerGate

tvm = pytest.importorskip("tvm")
RANDOM = np.random.default_rng


def call(function: Any, *arguments: np.ndarray, shape: tuple[int, ...], dtype: str = "f4") -> Any:
    """Compile a scheduled function for this processor and run it."""
    machine = find_machine()
    name = str(function.attrs["global_symbol"])
    target = tvm.target.Target({"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu})
    library = tvm.compile(tvm.IRModule({name: function}), target=target)
    out = tvm.runtime.tensor(np.full(shape, 77, dtype))
    library[name](*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments), out)
    return out.numpy()


def tile() -> Any:
    return tile_for(find_machine().cpu_features)


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the CUDA schedules make plain loops of blocks and threads, which this processor runs."""
    monkeypatch.setattr(tvm.s_tir.Schedule, "bind", lambda self, loop, axis: None)
    source = tmp_path / "dp4a.c"
    source.write_text(
        "int __dp4a(int a, int b, int c) {\n"
        "  for (int i = 0; i < 32; i += 8) c += (signed char)(a >> i) * (signed char)(b >> i);\n"
        "  return c;\n}\n"
    )
    library = tmp_path / "libdp4a.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def packed(kind: str, weight: np.ndarray) -> Any:
    if kind == "dense":
        return ops.pack_int8_weight(weight)
    return ops.pack_shift_weight(weight, wide=kind == "wide")


def linear_case(kind: str, rows: int, inputs: int, outputs: int) -> tuple[Any, ...]:
    random = RANDOM(rows * inputs + outputs)
    weight = random.normal(size=(outputs, inputs)) * np.exp(random.normal(size=(outputs, inputs)))
    x = random.normal(size=(rows, inputs)).astype("f4")
    w = packed(kind, weight.astype("f4"))
    return x, w, ops.int8_linear if kind == "dense" else ops.shift_linear


SIZES = [(1, 1, 1), (3, 7, 5), (49, 33, 65), (5, 1029, 130)]


@pytest.mark.parametrize("kind", ["shift", "wide", "dense"])
@pytest.mark.parametrize(
    ("size", "any_rows"), [*((size, False) for size in SIZES), (SIZES[1], True), (SIZES[3], True)]
)
def test_shift_linear_has_the_kernel_s_bits(
    kind: Any, size: tuple[int, int, int], any_rows: bool
) -> None:
    x, w, op = linear_case(kind, *size)
    rows = None if any_rows else size[0]
    function = linear.schedule_cpu(
        linear.define(rows, *size[1:], format=kind, **linear.for_cpu(tile())), tile(), rows
    )
    y = call(function, x, linear.words_of(w), w.scale, shape=(size[0], size[2]))
    np.testing.assert_array_equal(y, op(x, w))


@pytest.mark.parametrize("kind", ["shift", "wide", "dense"])
def test_shift_linear_in_floats_has_the_kernel_s_bits(kind: Any) -> None:
    x, w, op = linear_case(kind, *SIZES[3])
    plain = dataclasses.replace(tile(), dot=None)
    definition = linear.define(*SIZES[3], format=kind, **linear.for_cpu(plain))
    function = linear.schedule_cpu(definition, plain, 5)
    y = call(function, x, linear.words_of(w), w.scale, shape=(5, 130))
    np.testing.assert_array_equal(y, op(x, w))


def four_products(lanes: int) -> Any:
    """What vpdpbusd does: unsigned bytes of `a` times signed ones of `b`."""

    def number(value: int) -> Any:
        return tvm.tirx.const(value, f"int32x{lanes}")

    def add(sums: Any, a: Any, b: Any) -> Any:
        for shift in (0, 8, 16, 24):
            left = (a >> number(shift)) & number(255)
            sums = sums + left * ((b << number(24 - shift)) >> number(24))
        return sums

    return add


@pytest.mark.parametrize(
    ("dot", "kind"), [("avx512vnni", "wide"), ("avxvnni", "dense"), ("avx512vnni", "shift")]
)
def test_shift_linear_with_unsigned_bytes_has_the_kernel_s_bits(
    dot: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not every processor has the instruction; every one has what it does.
    form = byte_dot.form(dot)
    form = dataclasses.replace(form, add=four_products(form.lanes))
    assert form.unsigned
    monkeypatch.setitem(byte_dot._FORMS, dot, form)
    byte_dot._intrinsic.cache_clear()
    vectors = dataclasses.replace(tile(), dot=dot)
    x, w, op = linear_case(kind, 49, 33, 65)
    definition = linear.define(49, 33, 65, format=kind, **linear.for_cpu(vectors))
    function = linear.schedule_cpu(definition, vectors, 49)
    byte_dot._intrinsic.cache_clear()
    y = call(function, x, linear.words_of(w), w.scale, w.sums, shape=(49, 65))
    np.testing.assert_array_equal(y, op(x, w))


@pytest.mark.parametrize(
    ("cpu", "instruction"),
    [
        ("icelake-server", r"vpdpbusd\t%zmm\d+, %zmm\d+, %zmm"),
        ("alderlake", r"vpdpbusd\t%ymm\d+, %ymm\d+, %ymm"),
        ("x86-64-v3", r"vpmaddubsw\t%ymm\d+, %ymm\d+, %ymm"),
        ("cortex-a76", r"sdot\tv\d+\.4s, v\d+\.16b, v\d+\.16b"),
    ],
)
def test_bytes_are_multiplied_by_the_processor_s_own_instruction(cpu: str, instruction) -> None:
    system = "aarch64" if cpu.startswith("cortex") else "x86_64"
    machine = find_machine(f"{system}-linux-gnu", cpu)
    target = tile_for(machine.cpu_features)
    definition = linear.define(196, 64, 64, format="dense", **linear.for_cpu(target))
    function = linear.schedule_cpu(definition, target, 196)
    library = tvm.compile(tvm.IRModule({"shift_linear": function}), target=machine.target())
    code = library.mod.inspect_source("asm").splitlines()
    found = [number for number, line in enumerate(code) if re.search(instruction, line)]
    # All sums of a tile stay in registers: between the instructions no vector is on the stack.
    assert len(found) >= 16
    vector = re.compile(r"(?=.*\b(sp|rsp)\b)(?=.*(%[xyz]mm|\b[qv]\d))")
    stores = [line for line in code[found[0] : found[-1]] if vector.match(line)]
    assert not stores


@pytest.mark.parametrize("kind", ["shift", "wide", "dense"])
def test_a_row_that_is_not_finite_gives_nan_and_a_tiny_one_the_bias(kind: Any) -> None:
    x, w, op = linear_case(kind, 5, 19, 11)
    x[1, 3], x[2, 0], x[3] = np.nan, -np.inf, 1e-33
    bias = RANDOM(0).normal(size=11).astype("f4")
    function = linear.schedule_cpu(
        linear.define(5, 19, 11, format=kind, bias=True, **linear.for_cpu(tile())), tile(), 5
    )
    y = call(function, x, linear.words_of(w), w.scale, bias, shape=(5, 11))
    assert np.isnan(y[1:3]).all()
    np.testing.assert_array_equal(y[3], bias)
    np.testing.assert_allclose(y, op(x, w, bias), rtol=1e-6, atol=1e-6)


def test_shift_linear_adds_the_bias_and_gelu() -> None:
    x, w, op = linear_case("shift", 13, 70, 40)
    bias = RANDOM(0).normal(size=40).astype("f4")
    function = linear.schedule_cpu(
        linear.define(13, 70, 40, bias=True, activation="gelu", **linear.for_cpu(tile())),
        tile(),
        13,
    )
    y = call(function, x, linear.words_of(w), w.scale, bias, shape=(13, 40))
    np.testing.assert_allclose(y, op(x, w, bias, activation="gelu"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["shift", "wide", "dense"])
@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.usefixtures("without_threads")
def test_shift_linear_for_cuda_has_the_kernel_s_bits(kind: Any, size: tuple[int, int, int]) -> None:
    x, w, op = linear_case(kind, *size)
    function = linear.schedule_cuda(linear.define(*size, format=kind, dot="dp4a", tile_rows=4))
    y = call(function, x, linear.words_of(w), w.scale, shape=(size[0], size[2]))
    np.testing.assert_array_equal(y, op(x, w))


def attention_case(
    size: tuple[int, int, int, int, int],
) -> tuple[Any, Any, np.ndarray, np.ndarray, list[np.ndarray]]:
    batch, heads, tokens, bits, values = size
    random = RANDOM(tokens)
    q, k = random.normal(size=(2, batch, heads, tokens, bits)).astype("f4")
    v = random.normal(size=(batch, heads, tokens, values)) * np.exp(
        3 * random.normal(size=(batch, heads, tokens, 1))
    )
    taps = random.normal(size=(heads, 9)).astype("f4")
    a, b = ops.pack_bits(q), ops.pack_bits(k)
    return a, b, v.astype("f4"), taps, [a.words.view("i8"), b.words.view("i8"), v.astype("f4")]


HEADS = [(1, 1, 1, 1, 1), (2, 3, 65, 33, 17), (1, 1, 64, 128, 50)]


@pytest.mark.parametrize("size", HEADS)
@pytest.mark.parametrize("signed", [False, True])
def test_rounded_attention_has_the_kernel_s_bits(size: Any, signed: bool) -> None:
    q, k, v, _, given = attention_case(size)
    function = attention.define(None, *size[1:], signed=signed, tile_rows=tile().rows)
    y = call(attention.schedule_cpu(function, tile(), size[3]), *given, shape=v.shape)
    np.testing.assert_array_equal(y, ops.binary_linear_attention(q, k, v, signed=signed))


@pytest.mark.parametrize("size", HEADS)
@pytest.mark.parametrize(("exact", "taps"), [(True, False), (True, True), (False, True)])
def test_attention_in_floats_is_right(size: Any, exact: bool, taps: bool) -> None:
    q, k, v, filters, given = attention_case(size)
    function = attention.define(size[0], *size[1:], exact=exact, taps=taps, tile_rows=tile().rows)
    extra = [filters] if taps else []
    y = call(attention.schedule_cpu(function, tile(), size[3]), *given, *extra, shape=v.shape)
    expected = ops.binary_linear_attention(q, k, v, exact=exact, taps=filters if taps else None)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))


def test_what_is_not_finite_spoils_its_column_alone() -> None:
    size = (1, 2, 70, 20, 18)
    q, k, v, _, given = attention_case(size)
    v[0, 0, 3, 4], v[0, 1, 69, 17] = np.nan, np.inf
    function = attention.define(*size, tile_rows=tile().rows)
    y = call(attention.schedule_cpu(function, tile(), 20), *given[:2], v, shape=v.shape)
    np.testing.assert_array_equal(y, ops.binary_linear_attention(q, k, v))
    assert np.isnan(y[0, 0, :, 4]).all() and np.isnan(y).sum() == 140


@pytest.mark.parametrize("bits", [1, 63, 64, 65, 128])
def test_packs_the_kernel_s_bits(bits: int) -> None:
    x = RANDOM(bits).normal(size=(2, 3, 5, bits)).astype("f4")
    x[0, 0, 0, 0] = np.nan
    levels = np.array([-0.5, 0, 0.5], "f4")
    function = attention.schedule_pack_cpu(attention.define_pack(None, 3, 5, bits))
    words = call(function, x, levels, shape=(2, 3, 5, -(-bits // 64)), dtype="i8")
    np.testing.assert_array_equal(words.view("u8"), ops.pack_bits(x, list(levels)).words)


@pytest.mark.usefixtures("without_threads")
def test_attention_for_cuda_has_the_kernel_s_bits() -> None:
    size = (2, 3, 65, 33, 17)
    q, k, v, taps, given = attention_case(size)
    y = call(attention.schedule_cuda(attention.define(*size)), *given, shape=v.shape)
    np.testing.assert_array_equal(y, ops.binary_linear_attention(q, k, v))
    function = attention.schedule_cuda(attention.define(*size, exact=True, taps=True))
    y = call(function, *given, taps, shape=v.shape)
    expected = ops.binary_linear_attention(q, k, v, exact=True, taps=taps)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def mixer_weights(c: int) -> list[np.ndarray]:
    random = RANDOM(c)
    gate: list[tuple[int, ...]] = [(c, 1, 3, 3), (c,), (1, c, 1, 1), (c, c, 1, 1)]
    shapes = [(3 * c, c, 1, 1), (3 * c,), *gate, *gate, *gate[:2], *gate[:2]]
    return [
        (random.normal(size=shape) / np.prod(shape[1:], initial=1) ** 0.5).astype("f4")
        for shape in shapes
    ]


def mixed(x: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    c = x.shape[1]
    plain = [w.reshape(c, 3, 3) if w.shape[2:] == (3, 3) else w for w in weights]
    gates = [
        MixerGate(plain[i], plain[i + 1], plain[i + 2].reshape(c), plain[i + 3].reshape(c, c))
        for i in (2, 6)
    ]
    packed = ops.MixerWeights(plain[0].reshape(3 * c, c), plain[1], *gates, *plain[10:])
    return ops.additive_token_mixer(x, packed)


MAPS = [(1, 1, 1, 1), (2, 17, 5, 3), (1, 16, 7, 7), (3, 33, 28, 3)]


@pytest.mark.parametrize(
    ("size", "any_batch"), [*((size, False) for size in MAPS), (MAPS[1], True), (MAPS[3], True)]
)
def test_the_mixer_is_right(size: tuple[int, int, int, int], any_batch: bool) -> None:
    x, weights = RANDOM(1).normal(size=size).astype("f4"), mixer_weights(size[1])
    function = mixer.define(None if any_batch else size[0], *size[1:], tile_rows=tile().rows)
    scheduled = mixer.schedule_cpu(function, tile(), size[2] * size[3])
    y = call(scheduled, x, *mixer.pack_weights(weights), shape=size)
    expected = mixed(x, weights)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_nan_stays_in_its_image() -> None:
    x, weights = RANDOM(1).normal(size=(2, 20, 5, 5)).astype("f4"), mixer_weights(20)
    x[0, 3, 2, 2] = np.nan
    scheduled = mixer.schedule_cpu(mixer.define(2, 20, 5, 5, tile_rows=tile().rows), tile(), 25)
    y = call(scheduled, x, *mixer.pack_weights(weights), shape=x.shape)
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("size", MAPS[1:])
def test_the_mixer_for_cuda_is_right(size: tuple[int, int, int, int]) -> None:
    x, weights = RANDOM(1).normal(size=size).astype("f4"), mixer_weights(size[1])
    y = call(mixer.schedule_cuda(mixer.define(*size)), x, *mixer.pack_weights(weights), shape=size)
    expected = mixed(x, weights)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_refuses_weights_that_are_not_a_mixer_s() -> None:
    weights = mixer_weights(5)
    with pytest.raises(ShapeError, match="14 weights"):
        mixer.pack_weights(weights[:-1])
    with pytest.raises(ShapeError, match="expected a mixer's weights, got"):
        mixer.pack_weights([weights[0][:-1], *weights[1:]])


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler")
@pytest.mark.parametrize("op", ["shift", "wide", "dense", "attention", "pack", "mixer"])
def test_generates_cuda_source_that_compiles_without_spills(op: Any, tmp_path: Path) -> None:
    if op == "attention":
        function = attention.schedule_cuda(attention.define(1, 2, 196, 64, 64, taps=True))
    elif op == "pack":
        function = attention.schedule_cuda(attention.define_pack(1, 2, 196, 64), "pack_bits")
    elif op == "mixer":
        function = mixer.schedule_cuda(mixer.define(1, 56, 28, 28))
    else:
        definition = linear.define(
            49, 192, 768, format=op, bias=True, activation="gelu", dot="dp4a", tile_rows=4
        )
        function = linear.schedule_cuda(definition)
    name = str(function.attrs["global_symbol"])
    target = tvm.target.Target(
        {"kind": "cuda", "arch": "sm_80"}, host=tvm.target.Target({"kind": "llvm"})
    )
    module = tvm.compile(tvm.IRModule({name: function}), target=target).mod
    source = tmp_path / "kernels.cu"
    source.write_text(module.imports[0].inspect_source())
    done = subprocess.run(
        ["nvcc", "-arch=sm_80", "-cubin", "-Xptxas", "-v", "-o", tmp_path / "k.cubin", source],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert spills and set(spills) == {"0"}
    if op in ("shift", "wide", "dense"):
        assert "__dp4a(" in source.read_text()
