"""Runs the source model on real, random and worst-case inputs and keeps its answers.

Random input alone proves little: an exported detector passed its parity test on noise and found
nothing in any photo, because one layer was wrong only for the values that photos produce. So the
real images come first.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.errors import VerificationError
from vitlet.export.cases import Case, write_cases
from vitlet.export.trace import Graph
from vitlet.export.trace import graphs as trace_graphs

REAL_IMAGES = 4
PROMPTS = (
    "a photo of a dog",
    "a red bicycle leaning against a brick wall, shot at dusk",
    "2 cups of coffee & a croissant on a table",
)
_START, _END, _CONTEXT = 49406, 49407, 77


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
            _token_inputs()
            if spec.dtype == "int64"
            else _image_inputs(tuple(int(s) for s in spec.shape[1:]), preprocess, images)
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


def real_pixels(preprocess: Preprocess, images: Any = None) -> NDArray[np.uint8]:
    """Return real pictures as uint8 (n, H, W, C) of the model's size."""
    from vitlet.data.preprocess import resize_crop

    if images is None:
        from vitlet.data.demo import demo_images, demo_photos

        if preprocess.mode == "L":
            images = list(demo_images()[0][:REAL_IMAGES])
        else:
            images = list(demo_photos().values())[:REAL_IMAGES]
    pixels: NDArray[np.uint8] = resize_crop(images, preprocess)
    return pixels


def _image_inputs(
    shape: tuple[int, ...], preprocess: Preprocess | None, images: Any
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give (case name, stored input) for an image of (C, H, W)."""
    channels, height, width = shape
    random = np.random.default_rng(0)
    noise = random.standard_normal((1, channels, height, width))
    if preprocess is not None:
        for index, picture in enumerate(real_pixels(preprocess, images)):
            yield f"real_{index}", picture[None]
        yield "random_0", random.integers(0, 256, (1, height, width, channels), dtype=np.uint8)
        yield "zeros", np.zeros((1, 1, 1, 1), np.uint8)
        yield "ones", np.full((1, 1, 1, 1), 255, np.uint8)
        board = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
        yield "checkerboard", board[None, :, :, None]
        low = (-1 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
        high = (2 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
    else:
        low, high = np.full(channels, -4.0), np.full(channels, 4.0)
    yield "random_1", noise.astype(np.float16)
    # Pixels from -255 to 510: what a forgotten or doubled scaling feeds a model.
    spread = random.uniform(size=(1, channels, height, width))
    low, high = low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1)
    yield "out_of_range", (low + (high - low) * spread).astype(np.float16)


def _token_inputs() -> Iterator[tuple[str, NDArray[Any]]]:
    from vitlet.data.tokenizer import tokenize

    for index, row in enumerate(tokenize(list(PROMPTS))):
        yield f"real_{index}", row[None].astype(np.int64)
    yield "empty", tokenize([""]).astype(np.int64)
    yield "full", tokenize(["cat " * 100]).astype(np.int64)
    random = np.random.default_rng(0)
    for index, length in enumerate((29, _CONTEXT)):
        row = np.zeros((1, _CONTEXT), np.int64)
        row[0, : length - 1] = random.integers(1, _START, length - 1)
        row[0, 0], row[0, length - 1] = _START, _END
        yield f"random_{index}", row
