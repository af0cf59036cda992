"""Core ML programs (`.mlpackage`), made on any system.

The route is `torch.export`: tracing with `torch.jit` fails on the attention of half the zoo. Here
the program is built, compressed and written reproducibly; `vitlet.export.coreml_check` reads it
back and executes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitlet._extras import require
from vitlet.data.spec import Preprocess
from vitlet.errors import StorageError, UnsupportedError, UsageError
from vitlet.export.coreml_compress import compress
from vitlet.export.coreml_half import HalfSelector
from vitlet.export.coreml_package import finish_package
from vitlet.export.targets import Batch, batch_range
from vitlet.export.trace import Graph, UnitEmbedding, trace
from vitlet.layers.spelled_out import rounds_tokens, spell_out
from vitlet.runtime.coreml.quiet import quiet_coremltools
from vitlet.runtime.manifest import Artifact, TensorSpec

PREDICTED_LABEL = "classLabel"
PROBABILITIES = "classLabel_probs"  # as coremltools names the dictionary


class _Scores(nn.Module):
    """Softmax of a classifier's logits: Core ML shows them to apps as confidences."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, classes) float32 rows that sum to 1."""
        return torch.softmax(self.module(x).float(), dim=-1)


class _DividedByStd(nn.Module):
    """Divides each channel by its own std: Core ML's image input has one scale for all."""

    inverse: Tensor

    def __init__(self, module: nn.Module, std: Sequence[float]) -> None:
        super().__init__()
        self.module = module
        inverse = 1.0 / torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1)
        self.register_buffer("inverse", inverse.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives for x / std."""
        return self.module(x * self.inverse)  # type: ignore[no-any-return]


def export_coreml(
    graph: Graph,
    path: str | Path,
    *,
    precision: str = "fp16",
    ios: int = 16,
    batch: Batch = 1,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    palette_mode: str = "kmeans",
    keep_fp32: Sequence[str] = (),
) -> Artifact:
    """Write a graph as a Core ML program.

    Args:
        graph: from `vitlet.export.trace.graphs`.
        path: the `.mlpackage` folder to write; must not exist.
        precision: "fp16" or "fp32"; "int8" (linear, symmetric, per channel) and "palette4",
            "palette6", "palette8" compress the weights of a float16 program.
        ios: deployment target 16, 17 or 18 (macOS 13, 14, 15).
        batch: a number, or (lowest, highest).
        preprocess: give the program an image input with the model's scale and bias, so that an app
            hands over a picture of the right size; batch 1 only. None takes a float tensor.
        labels: class names. A classifier then gives "classLabel" and the dictionary
            "classLabel_probs" (softmax) in place of "logits".
        metadata: "author", "license", "version", "description"; other keys become user-defined.
        palette_mode: "kmeans" (better) or "uniform" (faster), for palettes.
        keep_fp32: operations (named as the traced torch nodes) and modules (by their paths) that
            compute in float32, with float32 weights, in a program of another precision.

    Raises:
        UnsupportedError: an operator or combination that Core ML cannot take.
        UsageError: labels that do not fit the output, or a name in `keep_fp32` that is unknown.
    """
    with quiet_coremltools():
        ct: Any = require("coremltools", extra="coreml", why="export to Core ML")
    low, high = batch_range(batch)
    if preprocess is not None and (low, high) != (1, 1):
        raise UnsupportedError(
            f"Core ML image inputs take one picture at a time, batch {batch!r} was asked for: use "
            'batch 1, or preprocess="none" for a tensor input'
        )
    plain = replace(graph, module=spell_out(graph.module))
    source, outputs = _wrapped(plain, preprocess, labels)
    with quiet_coremltools():
        program = trace(source, batch).run_decompositions({})
        _check_operators(ct, program, graph.name)
        half = HalfSelector(program, keep_fp32, wrapper(source.module), outputs[0].name)
        model = _convert(
            ct, source, program, outputs[0].name, precision, ios, batch, preprocess, labels, half
        )
        half.check()
        model, compressed = compress(model, precision, palette_mode)
        _rename_input(ct, model, program, graph.inputs[0].name)
        _describe(model, metadata or {})
        finish_package(model, Path(path))
    if labels is not None:
        outputs = (TensorSpec(PROBABILITIES, "float32", outputs[0].shape),)
    dtype = "uint8" if preprocess else "int32" if graph.inputs[0].dtype == "int64" else "float32"
    shape = graph.inputs[0].shape
    if preprocess is not None:
        shape = ("batch", *preprocess.size, preprocess.channels)
    given = TensorSpec(graph.inputs[0].name, dtype, shape)
    return Artifact(
        target="coreml",
        graph=graph.name,
        file=Path(path).name,
        precision=precision,
        inputs=_with_batch((given,), batch),
        outputs=_with_batch(outputs, batch),
        preprocess="none" if preprocess is None else "image-type",
        toolchain={"torch": torch.__version__, "coremltools": ct.__version__},
        details={
            "ios": ios,
            "specification": int(model.get_spec().specificationVersion),
            "batch": list(batch) if isinstance(batch, tuple) else batch,
            "class_labels": labels is not None,
            **({"arithmetic": "int8"} if rounds_tokens(graph.module) else {}),
            **compressed,
            **({"keep_fp32": list(keep_fp32)} if keep_fp32 else {}),
        },
    )


def _with_batch(specs: tuple[TensorSpec, ...], batch: Batch) -> tuple[TensorSpec, ...]:
    if not isinstance(batch, int):
        return specs
    return tuple(TensorSpec(s.name, s.dtype, (batch, *s.shape[1:])) for s in specs)


def _wrapped(
    graph: Graph, preprocess: Preprocess | None, labels: Sequence[str] | None
) -> tuple[Graph, tuple[TensorSpec, ...]]:
    module, outputs = graph.module, graph.outputs
    if labels is not None:
        if outputs[0].name != "logits":
            raise UsageError(f"class labels need a classifier, graph {graph.name!r} is none")
        if len(labels) != outputs[0].shape[1]:
            raise UsageError(
                f"the model has {outputs[0].shape[1]} classes, {len(labels)} labels were given"
            )
        module = _Scores(module)
        outputs = (TensorSpec("probabilities", "float32", outputs[0].shape),)
    if preprocess is not None:
        wanted = ("batch", preprocess.channels, *preprocess.size)
        if graph.inputs[0].shape != wanted:
            raise UsageError(
                f"an image input of shape {wanted} was described, graph {graph.name!r} takes "
                f"{graph.inputs[0].name} {graph.inputs[0].shape}"
            )
        module = for_pictures(Graph(graph.name, module, graph.inputs, outputs), preprocess).module
    return Graph(graph.name, module.eval(), graph.inputs, outputs), outputs


def for_pictures(graph: Graph, preprocess: Preprocess) -> Graph:
    """Return the graph that takes what an image input's scale and bias leave of a picture."""
    if len(set(preprocess.std)) == 1:
        return graph
    return replace(graph, module=_DividedByStd(graph.module, preprocess.std).eval())


def wrapper(module: nn.Module) -> str:
    """Return the path from our wrappers to the user's module, such as "module.tower"."""
    if isinstance(module, _Scores | _DividedByStd):
        return f"module.{wrapper(module.module)}".rstrip(".")
    return "tower" if isinstance(module, UnitEmbedding) else ""


def image_scale_and_bias(preprocess: Preprocess) -> tuple[float, list[float]]:
    """Return Core ML's (scale, bias per channel): pixel * scale + bias.

    Where the channels share one std it is part of both; where they do not, the program divides by
    each channel's std itself and these stop at x / 255 - mean.
    """
    std = preprocess.std[0] if len(set(preprocess.std)) == 1 else 1.0
    return 1.0 / (255.0 * std), [-mean / std for mean in preprocess.mean]


def _convert(
    ct: Any,
    graph: Graph,
    program: torch.export.ExportedProgram,
    output: str,
    precision: str,
    ios: int,
    batch: Batch,
    preprocess: Preprocess | None,
    labels: Sequence[str] | None,
    half: HalfSelector,
) -> Any:
    spec = graph.inputs[0]
    name = next(
        n.name for n in program.graph.nodes if n.op == "placeholder" and _is_input(program, n)
    )
    low, high = batch_range(batch)
    first = low if low == high else ct.RangeDim(lower_bound=low, upper_bound=high, default=low)
    shape = (first, *spec.shape[1:])
    if preprocess is not None:
        scale, bias = image_scale_and_bias(preprocess)
        layout = ct.colorlayout.RGB if preprocess.mode == "RGB" else ct.colorlayout.GRAYSCALE
        given = ct.ImageType(
            name=name,
            shape=shape,
            scale=scale,
            bias=bias if preprocess.mode == "RGB" else bias[0],
            color_layout=layout,
        )
    else:
        dtype = np.int32 if spec.dtype == "int64" else np.float32
        given = ct.TensorType(name=name, shape=shape, dtype=dtype)
    classes = None
    if labels is not None:
        classes = ct.ClassifierConfig(
            list(labels),
            predicted_feature_name=PREDICTED_LABEL,
            predicted_probabilities_output=output,
        )
    full = precision == "fp32"
    try:
        return ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[given],
            outputs=[ct.TensorType(name=output, dtype=np.float32)],
            classifier_config=classes,
            minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
            compute_precision=ct.precision.FLOAT32
            if full
            else ct.transform.FP16ComputePrecision(op_selector=half),
            skip_model_load=True,
        )
    except (NotImplementedError, ValueError, RuntimeError, TypeError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "FileWriter" in first:  # coremltools writes the weights into a temporary folder first
            raise StorageError(
                f"cannot write the Core ML weights into {tempfile.gettempdir()}: {first}: make "
                "room there, or set TMPDIR to another folder"
            ) from error
        raise UnsupportedError(f"Core ML export of graph {graph.name!r} failed: {first}") from error


def _is_input(program: torch.export.ExportedProgram, node: torch.fx.Node) -> bool:
    return node.name in program.graph_signature.user_inputs


def _check_operators(ct: Any, program: torch.export.ExportedProgram, graph: str) -> None:
    """Refuse a program with operators that the converter does not know, naming every one."""
    known = ct.converters.mil.frontend.torch.is_torch_fx_node_supported
    places: dict[str, set[str]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and not known(node):
            stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
            places.setdefault(str(node.target), set()).add(stack[-1][0] or "the model itself")
    if places:
        listed = "; ".join(f"{op} (in {', '.join(sorted(at)[:3])})" for op, at in places.items())
        raise UnsupportedError(
            f"Core ML has no translation for {listed}, used by graph {graph!r}: replace it in the "
            "model by standard operators"
        )


def _rename_input(ct: Any, model: Any, program: torch.export.ExportedProgram, name: str) -> None:
    spec = model.get_spec()
    current = spec.description.input[0].name
    if current != name:
        ct.utils.rename_feature(model._spec, current, name, rename_outputs=False)


_FIELDS = {"author": "author", "license": "license", "version": "version"}


def _describe(model: Any, metadata: Mapping[str, str]) -> None:
    stored = model._spec.description.metadata
    # The date would make every export another file.
    stored.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    for key, value in metadata.items():
        if key in _FIELDS:
            field = "versionString" if key == "version" else key
            setattr(stored, field, value)
        elif key == "description":
            stored.shortDescription = value
        else:
            stored.userDefined[key] = value
