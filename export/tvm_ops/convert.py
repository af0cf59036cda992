"""Turns `torch.ops.vitlet.*` in a traced program into calls of our functions, weights packed.

With `extern` the graph calls vitlet's C++ kernels by name instead, which `vitlet.runtime.tvm`
registers; such a library needs vitlet on the machine that runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from tvm import relax, tirx

from vitlet.errors import UnsupportedError
from vitlet.export.tvm_gemm import Tile
from vitlet.export.tvm_ops import additive_token_mixer as mixer
from vitlet.export.tvm_ops import binary_linear_attention as attention
from vitlet.export.tvm_ops import shift_linear as linear
from vitlet.ops import MixerWeights, pack_int8_weight, pack_shift_weight
from vitlet.ops.additive_token_mixer import MixerGate

Converter = Callable[[fx.Node, Any], Any]
# How many tensors of an operator the graph computes: they come first, weights after them.
_COMPUTED = {
    "additive_token_mixer.default": 1,
    "shift_linear.default": 1,
    "int8_linear.default": 1,
    "binary_linear_attention.default": 3,
}


def converters(
    program: torch.export.ExportedProgram, tile: Tile | None, *, extern: bool = False
) -> dict[str, Converter]:
    """Return what `from_exported_program` takes as `custom_convert_map`.

    Args:
        program: the one that will be translated; packed weights are read from it.
        tile: of the processor to compile for; None for CUDA.
        extern: call the C++ kernels instead of compiling loops.

    Raises:
        UnsupportedError: a weight of one of our operators is computed by the graph. Refused in the
            middle of a translation, TVM would complain of its own state on stderr.
    """
    for node in program.graph.nodes:
        first = _COMPUTED.get(getattr(node.target, "__name__", ""))
        for name, given in list(_options(node).items())[first:] if first else ():
            if isinstance(given, fx.Node):
                _weight(program, node, given, name)
    return {
        f"{name}.default": _Converter(program, tile, extern, translate)
        for name, translate in {
            "additive_token_mixer": _mixer,
            "shift_linear": _shift_linear,
            "int8_linear": _int8_linear,
            "binary_linear_attention": _attention,
        }.items()
    }


@dataclass(frozen=True)
class _Converter:
    program: torch.export.ExportedProgram
    tile: Tile | None
    extern: bool
    translate: Callable[[_Call], Any]

    def __call__(self, node: fx.Node, importer: Any) -> Any:
        return self.translate(_Call(self, node, importer))


@dataclass(frozen=True)
class _Call:
    """One call of an operator in the program."""

    converter: _Converter
    node: fx.Node
    importer: Any

    def options(self) -> dict[str, Any]:
        """Return the arguments by name, defaults filled in."""
        return _options(self.node)

    def tensor(self, node: fx.Node) -> Any:
        """Return an argument that the graph computes."""
        return self.importer.env[node]

    def weight(self, node: Any, name: str) -> NDArray[np.float32]:
        """Return an argument's numbers."""
        return _weight(self.converter.program, self.node, node, name)

    def sizes(self, tensor: Any, known: int) -> list[int]:
        """Return all sizes but the first `known`, which may be symbolic."""
        found = list(tensor.ty.shape)[known:]
        if not all(isinstance(size, tirx.IntImm) for size in found):
            raise UnsupportedError(
                f"TVM takes {self.node.target} with a dynamic batch, not with other sizes dynamic"
            )
        return [int(size) for size in found]

    def emit(self, function: Any, arguments: list[Any], shape: Any, dtype: str = "float32") -> Any:
        """Call one of our functions."""
        builder = self.importer.block_builder
        name = str(function.attrs["global_symbol"])
        variable = builder.add_func(function.without_attr("global_symbol"), name)
        return builder.emit(relax.call_tir(variable, arguments, relax.TensorType(shape, dtype)))

    def emit_extern(self, name: str, arguments: list[Any], shape: Any) -> Any:
        """Call a kernel that the runtime registers: see `vitlet.runtime.tvm_extern`."""
        kind = relax.TensorType(shape, "float32")
        return self.importer.block_builder.emit(
            relax.call_dps_packed(f"vitlet.{name}", arguments, kind)
        )


def _options(node: fx.Node) -> dict[str, Any]:
    target: Any = node.target
    found = {argument.name: argument.default_value for argument in target._schema.arguments}
    found.update(zip(found, node.args, strict=False))
    return {**found, **node.kwargs}


def _weight(
    program: torch.export.ExportedProgram, call: fx.Node, given: Any, name: str
) -> NDArray[np.float32]:
    signature = program.graph_signature
    key = str(given.name)
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if key in names:
            tensors = {**program.state_dict, **program.constants}
            return np.ascontiguousarray(tensors[names[key]].detach().float().numpy())
    raise UnsupportedError(
        f"TVM packs the weights of {call.target} when it compiles: {name} must be a "
        "parameter or a buffer, not computed by the graph"
    )


def _first(tensor: Any) -> int | None:
    size = tensor.ty.shape[0]
    return int(size) if isinstance(size, tirx.IntImm) else None


def _constants(*arrays: NDArray[Any]) -> list[Any]:
    return [relax.const(array) for array in arrays]


def _mixer(call: _Call) -> Any:
    options = call.options()
    given, *names = list(options)[:-1]
    x = call.tensor(options[given])
    weights = [call.weight(options[name], name) for name in names]
    channels, height, width = call.sizes(x, 1)
    if call.converter.extern:
        plain = [weight.reshape(_plain(weight)) for weight in weights]
        q, k = (
            MixerGate(plain[i], plain[i + 1], plain[i + 2].reshape(-1), plain[i + 3])
            for i in (2, 6)
        )
        packed = MixerWeights(plain[0], plain[1], q, k, *plain[10:])
        precision = options["precision"]
        arguments = [x, *_constants(packed.packed(precision).reshape(-1))]
        return call.emit_extern(f"additive_token_mixer.{precision}", arguments, x.ty.shape)
    tile, size = call.converter.tile, (_first(x), channels, height, width)
    if tile is None:
        scheduled = mixer.schedule_cuda(mixer.define(*size))
    else:
        function = mixer.define(*size, tile_rows=tile.rows)
        scheduled = mixer.schedule_cpu(function, tile, height * width)
    return call.emit(scheduled, [x, *_constants(*mixer.pack_weights(weights))], x.ty.shape)


def _plain(weight: NDArray[np.float32]) -> tuple[int, ...]:
    """The sizes of a convolution's weight without those of one."""
    if weight.ndim < 4:
        return weight.shape
    if weight.shape[2:] == (3, 3):
        return weight.shape[0], 3, 3
    return weight.shape[:2]


def _shift_linear(call: _Call) -> Any:
    options = call.options()
    weight = call.weight(options["weight"], "weight")
    return _linear(call, options, pack_shift_weight(weight, bool(options["wide"])))


def _int8_linear(call: _Call) -> Any:
    options = call.options()
    return _linear(call, options, pack_int8_weight(call.weight(options["weight"], "weight")))


def _linear(call: _Call, options: dict[str, Any], packed: Any) -> Any:
    builder, tile = call.importer.block_builder, call.converter.tile
    x = call.tensor(options["x"])
    outputs, inputs = packed.shape
    outer = list(x.ty.shape)[:-1]
    rows: Any = tirx.IntImm("int64", 1)
    for size in outer:
        rows = rows * size
    flat = builder.emit(relax.op.reshape(x, relax.ShapeExpr([rows, inputs])))
    count = _first(flat)
    bias = [] if options["bias"] is None else [call.weight(options["bias"], "bias")]
    kind, activation = linear.format_of(packed), options["activation"]
    shape = [rows, outputs]
    if call.converter.extern:
        constants = _constants(packed.panels, packed.sums, packed.scale, *bias)
        y = call.emit_extern(f"shift_linear.{kind}.{activation}", [flat, *constants], shape)
    else:
        form = linear.for_cpu(tile) if tile else {"dot": "dp4a", "tile_rows": 4}
        function = linear.define(
            count, inputs, outputs, format=kind, bias=bool(bias), activation=activation, **form
        )
        if tile is None:
            scheduled = linear.schedule_cuda(function)
        else:
            scheduled = linear.schedule_cpu(function, tile, count)
        sums = [packed.sums] if form.get("unsigned") else []
        constants = _constants(linear.words_of(packed), packed.scale, *sums, *bias)
        y = call.emit(scheduled, [flat, *constants], shape)
    return builder.emit(relax.op.reshape(y, relax.ShapeExpr([*outer, outputs])))


def _attention(call: _Call) -> Any:
    options, tile = call.options(), call.converter.tile
    q, k, v = (call.tensor(options[name]) for name in ("q", "k", "v"))
    heads, tokens, bits = call.sizes(q, 1)
    values = call.sizes(v, 3)[0]
    batch, signed, exact = _first(q), bool(options["signed"]), bool(options["exact"])
    levels = [
        np.zeros(heads, np.float32) if options[name] is None else call.weight(options[name], name)
        for name in ("q_threshold", "k_threshold")
    ]
    taps = [] if options["taps"] is None else [call.weight(options["taps"], "taps")]
    if call.converter.extern:
        name = f"binary_linear_attention.{'signed' if signed else 'plain'}"
        name += ".exact" if exact else ".rounded"
        return call.emit_extern(name, [q, k, v, *_constants(*levels, *taps)], v.ty.shape)
    pack = attention.define_pack(batch, heads, tokens, bits)
    if tile is None:
        pack = attention.schedule_cuda(pack, attention.PACK_NAME)
    else:
        pack = attention.schedule_pack_cpu(pack)
    words = [q.ty.shape[0], heads, tokens, -(-bits // 64)]
    packed = [
        call.emit(pack, [x, *_constants(level)], words, "int64")
        for x, level in zip((q, k), levels, strict=True)
    ]
    function = attention.define(
        batch, heads, tokens, bits, values, signed=signed, exact=exact, taps=bool(taps),
        tile_rows=tile.rows if tile else 1,
    )  # fmt: skip
    if tile is None:
        scheduled = attention.schedule_cuda(function)
    else:
        scheduled = attention.schedule_cpu(function, tile, bits)
    return call.emit(scheduled, [*packed, v, *_constants(*taps)], v.ty.shape)
