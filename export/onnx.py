"""ONNX files: small, fast in ONNX Runtime, and the same bytes every time."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from vitlet._extras import require
from vitlet.data.spec import Preprocess
from vitlet.errors import UnsupportedError, VitletError
from vitlet.export.preprocessing import HalfInside, from_pixels
from vitlet.export.targets import Batch, opset_for
from vitlet.export.trace import Graph, UnitEmbedding, trace
from vitlet.runtime.manifest import Artifact, TensorSpec

if TYPE_CHECKING:
    from vitlet.export.accelerate.table import Table

HALF_MAX = 65504.0
# Above this the weights go into a file of their own: protobuf stops at 2 GiB.
SINGLE_FILE_LIMIT = 1_800_000_000


def export_onnx(
    graph: Graph,
    path: str | Path,
    *,
    precision: Literal["fp32", "fp16"] = "fp32",
    batch: Batch = 1,
    opset: int | str | None = None,
    preprocess: Preprocess | None = None,
    accelerate: Literal["fp32", "bf16", "int8"] | None = None,
    accelerate_table: Table | None = None,
) -> Artifact:
    """Write a graph as ONNX.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        path: the file to write.
        precision: "fp16" computes and stores in float16; inputs and outputs stay float32, and so
            does the norm of an embedding.
        batch: a number (fixed), (lowest, highest), or "dyn". ONNX has no way to state a range, so
            a range is written as a free batch and kept in the artefact's details.
        opset: a number, or the name of a consumer in `vitlet.export.targets.ONNX_CONSUMERS`.
        preprocess: put the pixel normalization into the graph, which then takes uint8
            (batch, H, W, C).
        accelerate: call vitlet's operators where its kernels are faster here, computing in "fp32",
            with "bf16" products, or with "int8" ones. Their definitions are in the file: it runs
            without the kernels too.
        accelerate_table: times to decide by, from `vitlet.export.accelerate.table.read_table`; by
            default layers are measured here.

    Returns:
        The manifest entry, with the file's name relative to its folder.

    Raises:
        UnsupportedError: the model uses operators that ONNX cannot express (all are named), or
            weights that float16 cannot hold; or nothing in it can be accelerated.
        UsageError: the table is of another model.
    """
    onnx: Any = require("onnx", extra="onnx", why="export to ONNX")
    require("onnxscript", extra="onnx", why="export to ONNX")
    from vitlet.export import functions, onnx_passes
    from vitlet.export.functions.pack_weights import pack_weights

    path, version = Path(path), opset_for(opset)
    source = from_pixels(graph, preprocess) if preprocess is not None else graph
    if accelerate is not None:
        source = _with_our_mixers(source)
    if precision == "fp16":
        source = _in_half(source)
    program = _convert(source, batch, max(version, 18))
    model = program.model
    onnx_passes.simplify(model, fold_input=precision == "fp32")
    pack_weights(model)
    table: Table | None = None
    if accelerate is not None:
        from vitlet.export.accelerate.whole import accelerate_model

        model, table = accelerate_model(model, source, accelerate, accelerate_table)
    onnx_passes.finish(model)
    if version == 17:
        onnx_passes.lower_to_17(model)
    custom = functions.attach(model)
    onnx_passes.free_batch_name(model)
    onnx_passes.name_everything(model, _wrapper(source.module))
    model.graph.name = source.name
    model.producer_name, model.producer_version = "vitlet", None
    _write(onnx, model, path, onnx_passes.weight_bytes(model) > SINGLE_FILE_LIMIT)
    return Artifact(
        target="onnx",
        graph=graph.name,
        file=path.name,
        precision=precision,
        inputs=_with_batch(source.inputs, batch),
        outputs=_with_batch(source.outputs, batch),
        preprocess="none" if preprocess is None else "in-graph",
        custom_ops=custom,
        toolchain={
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxscript": require("onnxscript", extra="onnx", why="export to ONNX").__version__,
        },
        details={
            "opset": version,
            "ir_version": model.ir_version,
            "batch": list(batch) if isinstance(batch, tuple) else batch,
            "nodes": len(model.graph),
            **({"accelerate": accelerate} if custom else {}),
            **({} if table is None else {"accelerate_table": table.to_json()}),
        },
    )


def _with_batch(specs: tuple[TensorSpec, ...], batch: Batch) -> tuple[TensorSpec, ...]:
    if not isinstance(batch, int):
        return specs
    return tuple(TensorSpec(s.name, s.dtype, (batch, *s.shape[1:])) for s in specs)


def _in_half(graph: Graph) -> Graph:
    module = graph.module
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        tensor = value.detach()
        if tensor.is_floating_point():
            finite = tensor[torch.isfinite(tensor)]  # -inf in an attention mask is fine
            if finite.numel() and float(finite.abs().max()) > HALF_MAX:
                raise UnsupportedError(
                    f"{name} holds {float(finite.abs().max()):.4g}, more than float16's "
                    f"{HALF_MAX:.0f}: export graph {graph.name!r} with precision fp32"
                )
    return Graph(graph.name, _halved(module).eval(), graph.inputs, graph.outputs)


def _halved(module: nn.Module) -> nn.Module:
    """Put the float16 part between those that must stay float32: pixels before, the norm after."""
    from vitlet.export.preprocessing import FromPixels

    if isinstance(module, FromPixels):
        outer = copy.copy(module)
        outer._modules = {"module": _halved(module.module)}
        return outer
    if isinstance(module, UnitEmbedding):
        return UnitEmbedding(HalfInside(copy.deepcopy(module.tower).half()))
    return HalfInside(copy.deepcopy(module).half())


def _with_our_mixers(graph: Graph) -> Graph:
    from vitlet.layers.fused_mixer import fuse_mixers

    return Graph(graph.name, fuse_mixers(graph.module, "fp32"), graph.inputs, graph.outputs)


def _wrapper(module: nn.Module) -> str:
    """Return the path from our wrappers to the user's module, such as "tower.module"."""
    from vitlet.export.preprocessing import FromPixels

    for kind, name in ((FromPixels, "module"), (UnitEmbedding, "tower"), (HalfInside, "module")):
        if isinstance(module, kind):
            inner: nn.Module = getattr(module, name)
            return f"{name}.{_wrapper(inner)}".rstrip(".")
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's progress prints, notes and deprecation warnings out of our output."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _convert(graph: Graph, batch: Batch, opset: int) -> Any:
    program = trace(graph, batch)
    from vitlet.export.functions.translate import translations

    table = translations()
    from vitlet.export.onnx_attention import attention, fits

    if fits(program):
        table[torch.ops.aten.scaled_dot_product_attention.default] = attention
    missing: list[str] = []
    while True:
        try:
            with _quiet():
                result = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=opset,
                    input_names=[spec.name for spec in graph.inputs],
                    output_names=[spec.name for spec in graph.outputs],
                    custom_translation_table=table,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            name = _unknown_operator(error)
            if name is None or name in missing:
                if missing:
                    break
                raise UnsupportedError(
                    f"ONNX export of graph {graph.name!r} failed: {_innermost(error)}"
                ) from error
            # Stand in for it, so that one run names every operator that is missing.
            missing.append(name)
            table[_operator(name)] = _stand_in
            continue
        if not missing:
            assert result is not None
            return result
        break
    raise UnsupportedError(_missing_message(program, missing, graph.name))


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _unknown_operator(error: BaseException) -> str | None:
    """Return "aten.name.overload" from the exporter's complaint that it has no translation."""
    cause: BaseException | None = error
    while cause is not None:
        found = re.search(r"OpOverload\(op='([\w.]+)', overload='(\w+)'\)", str(cause))
        if found and "No ONNX function found" in str(cause):
            return f"{found[1]}.{found[2]}"
        cause = cause.__cause__
    return None


def _operator(name: str) -> Any:
    target: Any = torch.ops
    for part in name.split("."):
        target = getattr(target, part)
    return target


def _stand_in(*args: Any, **kwargs: Any) -> Any:
    from onnxscript import opset18 as op

    return op.Identity(args[0])


def _missing_message(program: torch.export.ExportedProgram, missing: list[str], graph: str) -> str:
    with _quiet():
        # The exporter takes operators apart before it translates them, as this does.
        nodes = [*program.graph.nodes, *program.run_decompositions().graph.nodes]
    lines = []
    for name in missing:
        stacks = [n.meta.get("nn_module_stack") for n in nodes if str(n.target) == name]
        places = {list(stack.values())[-1][0] or "the model itself" for stack in stacks if stack}
        lines.append(f"{name} (in {', '.join(sorted(places)[:3]) or 'the model'})")
    return (
        f"ONNX has no translation for {'; '.join(lines)}, used by graph {graph!r}: replace it in "
        "the model by standard operators"
    )


def _write(onnx: Any, model: Any, path: Path, external: bool) -> None:
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    common.ShapeInferencePass()(model)
    if external:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        onnx.checker.check_model(str(path), full_check=True)
        return
    proto = ir.serde.serialize_model(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VitletError(f"the exported ONNX graph is not valid: {error}") from error
    path.write_bytes(proto.SerializeToString(deterministic=True))
