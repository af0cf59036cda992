"""Everything done to an exported ONNX graph before it is written: smaller, faster, reproducible."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from vitlet.export.onnx_attention import merge_transposes, split_qkv
from vitlet.export.onnx_fold import fold_into_next, fold_into_previous, spell_out_batch_norm
from vitlet.export.onnx_graph import bypass, constant, insert_before, scope_of
from vitlet.export.onnx_multiplier import split_multiplier
from vitlet.export.onnx_split import split_conv, split_linear

# The order of these matters for speed only; they run until none of them changes anything.
_STEPS: tuple[Callable[[ir.Node], bool], ...] = (
    spell_out_batch_norm,
    split_qkv,
    merge_transposes,
    fold_into_previous,
)


def global_pool(node: ir.Node) -> bool:
    """Turn a mean over height and width into GlobalAveragePool, which keeps a blocked layout."""
    if node.op_type != "ReduceMean":
        return False
    source = node.inputs[0]
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or len(source.shape) != 4 or axes is None:
        return False
    if sorted(int(a) % 4 for a in axes) != [2, 3]:
        return False
    pooled = insert_before(node, "GlobalAveragePool", [source])
    pooled.shape = ir.Shape([*source.shape[:2], 1, 1])
    if not node.attributes.get_int("keepdims", 1):
        pooled = insert_before(node, "Flatten", [pooled], {"axis": 1})
        pooled.shape = node.outputs[0].shape
    bypass(node, pooled)
    return True


def broadcast(node: ir.Node) -> bool:
    """Let an operand broadcast by itself instead of being written out for every place."""
    if node.domain != "" or node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return False
    shape = node.outputs[0].shape
    for index, value in enumerate(node.inputs):
        wide, other = None if value is None else value.producer(), node.inputs[1 - index]
        if wide is None or wide.domain != "" or wide.op_type != "Expand" or other is None:
            continue
        if shape is not None and other.shape is not None and str(other.shape) == str(shape):
            node.replace_input_with(index, wide.inputs[0])
            return True
    return False


def simplify(model: ir.Model, *, fold_input: bool = True) -> None:
    """Fold, split and clean until nothing changes.

    Args:
        model: changed in place.
        fold_input: fold a scale or shift into the convolution after it. Not wanted in float16: a
            pixel scale of 1/255 would push weights below its smallest normal number.
    """
    steps = (
        *_STEPS,
        global_pool,
        broadcast,
        split_conv,
        split_linear,
        *([fold_into_next] if fold_input else []),
    )
    _tidy(model)
    changed = True
    while changed:
        changed = False
        for node in list(model.graph):
            changed = any(node.graph is not None and step(node) for step in steps) or changed
        _tidy(model)


def finish(model: ir.Model) -> None:
    """Do what spreads one layer's channels over several, and drop what nothing uses."""
    for node in list(model.graph):
        split_multiplier(node)
    _tidy(model)
    common.DeduplicateInitializersPass(size_limit=1 << 40)(model)
    common.RemoveUnusedNodesPass()(model)


def _tidy(model: ir.Model) -> None:
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    optimizer.optimize_ir(model, input_size_limit=1 << 16, output_size_limit=1 << 16)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    common.DeduplicateInitializersPass(size_limit=1024)(model)
    common.RemoveUnusedNodesPass()(model)


def name_everything(model: ir.Model, wrapper: str = "") -> None:
    """Name nodes and values after the modules they come from, in graph order; strip the rest.

    A profiler, a viewer and `--first-bad` then speak of "blocks.3.attn.proj", and nothing of the
    machine that exported (paths, stack traces) is left in the file.

    Args:
        model: changed in place.
        wrapper: module path of the user's module inside ours, left out of the names.
    """
    graph = model.graph
    taken: Counter[str] = Counter()
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        scope = scope_of(node).removeprefix(wrapper).lstrip(".")
        stem = f"{scope}/{node.op_type}" if scope else node.op_type
        stem = re.sub(r"[^A-Za-z0-9_./]", "_", stem)
        node.name = stem if not taken[stem] else f"{stem}_{taken[stem]}"
        taken[stem] += 1
        for index, output in enumerate(node.outputs):
            if id(output) not in ends:
                output.name = node.name if len(node.outputs) == 1 else f"{node.name}:{index}"
    _name_constants(graph, wrapper)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in graph:
        for output in node.outputs:
            output.metadata_props.clear()
            output.doc_string = None


def _name_constants(graph: ir.Graph, wrapper: str) -> None:
    """Order initializers by first use; give the exporter's anonymous ones readable names."""
    order: dict[int, ir.Value] = {}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer():
                order.setdefault(id(value), value)
    values = list(order.values())
    graph.initializers.clear()
    taken: set[str] = {output.name or "" for node in graph for output in node.outputs}
    taken |= {value.name or "" for value in graph.inputs}
    counts: Counter[str] = Counter()
    for value in values:
        # Folding replaces a weight by "NAME_1" and may do so again.
        name = re.sub(r"(weight|bias)(_\d+)+$", r"\1", value.name or "")
        name = name.removeprefix(wrapper).lstrip(".")
        if not re.search(r"(weight|bias)$", name) or name in taken:
            user = next(iter(value.uses()))
            stem = name if "." in name and name not in taken else f"{user.node.name}.const"
            counts[stem] += 1
            name = stem if counts[stem] == 1 and stem not in taken else f"{stem}.{counts[stem]}"
        value.name = name
        if value.const_value is not None:
            value.const_value.name = name
        taken.add(name)
        graph.initializers.add(value)


def free_batch_name(model: ir.Model) -> None:
    """Call the free batch "batch" and drop every intermediate shape (inferred anew later)."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and not isinstance(value.shape[0], int):
            value.shape = ir.Shape(["batch", *value.shape[1:]])
    outputs = {id(value) for value in graph.outputs}
    for node in graph:
        for output in node.outputs:
            if id(output) not in outputs:
                output.shape = None
                output.type = None


def lower_to_17(model: ir.Model) -> None:
    """Spell opset 18 as opset 17: reductions take axes as an attribute, Split counts by outputs.

    The exporter's own lowest opset is 18.
    """
    for node in model.graph:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
            node.attributes.pop("noop_with_empty_axes", None)
        if node.op_type.startswith("Reduce") and len(node.inputs) > 1:
            axes = constant(node.inputs[1]) if node.op_type != "ReduceSum" else None
            if axes is not None:
                node.attributes["axes"] = ir.AttrInt64s("axes", [int(a) for a in axes.reshape(-1)])
                node.resize_inputs(1)
        if node.op_type == "Split":
            node.attributes.pop("num_outputs", None)
    common.RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[""] = 17


def weight_bytes(model: ir.Model) -> int:
    """Return the size of all constants, in bytes."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
