"""Runs the source model on real, random and worst-case inputs and keeps its answers.

Random input alone proves little: an exported detector passed its parity test on noise and found
nothing in any photo, because one layer was wrong only for the values that photos produce. So the
real images come first.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.errors import VerificationError
from vitlet.export.cases import Case, write_cases
from vitlet.export.inputs import image_inputs, token_inputs
from vitlet.export.trace import Graph
from vitlet.export.trace import graphs as trace_graphs


def make_golden(
    model: nn.Module,
    graphs: Sequence[Graph],
    preprocess: Preprocess | None,
    *,
    images: Any = None,
) -> dict[str, NDArray[Any]]:
    """Return the tensors of `golden.safetensors` (format: `vitlet.export.cases`).

    Args:
        model: the source model, as the checkpoint gives it: not reparameterized. It is not changed.
        graphs: which graphs to answer for; only their names and inputs are used.
        preprocess: how pictures become the model's input; None leaves only float inputs.
        images: pictures to use as the real ones, as `vitlet.data.preprocess.resize_crop` takes
            them; by default the bundled photos, or the bundled grey images for mode "L".

    Raises:
        VerificationError: the source model itself gives NaN or infinity for a real or random input.
    """
    source = model
    if model.training or any(p.dtype != torch.float32 for p in model.parameters()):
        source = copy.deepcopy(model).eval().float()
    cases: list[Case] = []
    shapes = [graph.inputs[0].shape[1:] for graph in graphs if graph.inputs[0].dtype != "int64"]
    shape = tuple(int(size) for size in shapes[0]) if shapes else None
    functions = {graph.name: graph.module for graph in trace_graphs(source, shape)}  # type: ignore[arg-type]
    for graph in graphs:
        spec = graph.inputs[0]
        inputs = (
            token_inputs()
            if spec.dtype == "int64"
            else image_inputs(tuple(int(s) for s in spec.shape[1:]), preprocess, images)
        )
        for name, stored in inputs:
            case = Case(graph.name, name, stored, np.zeros((1, 0), np.float32))
            with torch.no_grad():
                given = torch.from_numpy(case.floats(preprocess))
                output = functions[graph.name](given).float().numpy()
            if np.isfinite(output).all():
                cases.append(Case(graph.name, name, stored, output))
            elif case.kind != "worst":  # a source that overflows out of its range proves nothing
                raise VerificationError(
                    f"the source model gives values that are not finite for the {graph.name} input "
                    f"{name}: check its weights, there is nothing to compare with"
                )
    return write_cases(cases)
