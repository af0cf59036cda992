"""From a torch module to traced graphs: one per thing that a device runs.

A classifier is one graph ("model"), a CLIP-style model two ("image" and "text"), each with named,
typed inputs and outputs. `trace` is the one way into every target, so that all of them compile the
same program.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitlet.errors import ShapeError, UnsupportedError, UsageError
from vitlet.export.targets import Batch, batch_range
from vitlet.runtime.manifest import TensorSpec

CONTEXT = 77
_START, _END = 49406, 49407


@dataclass(frozen=True)
class Graph:
    """One function to compile.

    Attributes:
        name: "model", "image" or "text".
        module: the function, in eval mode; takes and returns one tensor.
        inputs: one entry: "image" float32 ("batch", C, H, W) or "tokens" int64 ("batch", 77).
        outputs: one entry: "logits" or "embedding", float32 ("batch", D).
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return made-up inputs of the right kind: normal noise, or well-formed token rows."""
        random = torch.Generator().manual_seed(seed)
        spec = self.inputs[0]
        if spec.dtype == "int64":
            return (_example_tokens(batch, random),)
        if spec.dtype == "uint8":
            pixels = torch.randint(0, 256, (batch, *_sizes(spec)), generator=random)
            return (pixels.to(torch.uint8),)
        return (torch.randn(batch, *_sizes(spec), generator=random),)


class UnitEmbedding(nn.Module):
    """A tower followed by x / ||x||, so that a device compares embeddings by a dot product.

    The norm is taken in float32 whatever the tower computes in: a sum of squares leaves float16's
    range quickly at either end.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D) float32 rows of length 1."""
        features = self.tower(x).float()
        length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        return features / length.clamp_min(1e-12)  # type: ignore[no-any-return]


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(int(size) for size in spec.shape[1:])


def _example_tokens(batch: int, random: torch.Generator) -> Tensor:
    tokens = torch.zeros(batch, CONTEXT, dtype=torch.int64)
    for row in tokens:  # start, some words, end, padding: the end has the highest id
        words = int(torch.randint(1, CONTEXT - 1, (1,), generator=random))
        row[0], row[words + 1] = _START, _END
        row[1 : words + 1] = torch.randint(1, _START, (words,), generator=random)
    return tokens


def _graph(name: str, module: nn.Module, given: TensorSpec, output: str) -> Graph:
    probe = Graph(name, module, (given,), ())
    with torch.no_grad():
        result = module(*probe.example(1))
    if not isinstance(result, Tensor) or result.ndim != 2 or result.shape[0] != 1:
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ShapeError(
            f"{type(module).__name__} must map one {given.name} to a (1, D) tensor, got {shape}"
        )
    return Graph(
        name, module, (given,), (TensorSpec(output, "float32", ("batch", int(result.shape[1]))),)
    )


def graphs(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> list[Graph]:
    """Return the graphs that a device needs of a model.

    Args:
        model: in eval mode. With `image_tower` and `text_tower` (a CLIP-style model) it gives the
            graphs "image" and "text", whose outputs are unit-length embeddings; any other module
            is taken for a classifier and gives the graph "model".
        input_shape: (C, H, W) of one image; by default that of `model.info`.

    Raises:
        UsageError: no input shape is given or known, or the model is in training mode.
        ShapeError: the model does not give one row of numbers per image.
    """
    if model.training:
        raise UsageError("the model is in training mode: call model.eval() before exporting it")
    info = getattr(model, "info", None)
    if input_shape is None:
        if info is None:
            raise UsageError(
                f"{type(model).__name__} has no `info`: give its input with `spec=Preprocess(...)`"
            )
        input_shape = info.input_shape
    image = TensorSpec("image", "float32", ("batch", *input_shape))
    image_tower = getattr(model, "image_tower", None)
    text_tower = getattr(model, "text_tower", None)
    if image_tower is None or text_tower is None:
        return [_graph("model", model, image, "logits")]
    tokens = TensorSpec("tokens", "int64", ("batch", CONTEXT))
    return [
        _graph("image", UnitEmbedding(image_tower).eval(), image, "embedding"),
        _graph("text", UnitEmbedding(text_tower).eval(), tokens, "embedding"),
    ]


def trace(graph: Graph, batch: Batch = 1) -> torch.export.ExportedProgram:
    """Trace a graph with `torch.export`.

    Args:
        graph: what to trace.
        batch: a number (fixed), (lowest, highest), or "dyn" (any batch from 1).

    Raises:
        UnsupportedError: the module does something that cannot be traced, or that ties the batch
            to one size.
    """
    low, high = batch_range(batch)
    # Two, not one: a batch of one is taken for a constant and the program would accept only that.
    size = low if low == high else max(low, 2)
    inputs = graph.example(size)
    shapes: tuple[dict[int, torch.export.Dim], ...] | None = None
    if low != high:
        dim = torch.export.Dim("batch", min=low, max=high)
        shapes = tuple({0: dim} for _ in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's notes on its own internals
            return torch.export.export(graph.module, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises anything, down to bare RuntimeError
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(
            f"{type(graph.module).__name__} (graph {graph.name!r}) cannot be traced with batch "
            f"{batch!r}: {first[0]}: make the module free of data-dependent Python, or export a "
            "fixed batch"
        ) from error
