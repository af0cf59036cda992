"""Weights as a Core ML program stores them: how far off they may be; torch run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vitlet.errors import UnsupportedError
from vitlet.export.coreml import export_coreml
from vitlet.export.coreml_program import HALF_STEP, Weight, read_program
from vitlet.export.stored_weights import run_on_stored_weights
from vitlet.export.trace import graphs, trace
from vitlet.models.deit import DeiT
from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_every_choice_of_an_evenly_spaced_palette_is_allowed(bits: int) -> None:
    exact = np.linspace(-1.15, 1.0463, 20_001, dtype=np.float32)
    with quiet_coremltools():
        from coremltools.optimize.coreml._quantization_passes import palettize_weights

        half = exact.astype(np.float16)
        table, places = palettize_weights._get_lut_and_indices(half, "UNIFORM", bits, None)
    palette = table.ravel().astype(np.float64)
    stored = palette[places.ravel()].astype(np.float32)
    weight = Weight("w", stored, (0,), 0.0, HALF_STEP, palette)
    assert (np.abs(stored - exact) <= weight.allowed(exact)).all()


@pytest.mark.parametrize("precision", ["fp16", "int8", "palette8", "palette4"])
@pytest.mark.parametrize("name", ["small_vit", "small_conv"])
def test_a_program_computes_what_torch_does_on_the_same_weights(
    name: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: nn.Module = request.getfixturevalue(name)
    (graph,) = graphs(model, (3, 32, 32))
    export_coreml(graph, tmp_path / "m.mlpackage", precision=precision, palette_mode="uniform")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    expected = run_on_stored_weights(read_program(tmp_path / "m.mlpackage"), trace(graph, 1), x)
    (actual,) = CoreMLExecutor(tmp_path / "m.mlpackage").run({"image": x.numpy()}).values()
    own = model(x).numpy()
    size = np.abs(own).max()
    assert np.abs(actual - expected).max() / size < 2e-3  # int8 steps are float16 numbers
    assert np.abs(actual - own).max() > 3 * np.abs(actual - expected).max()


def test_a_program_of_another_model_has_no_such_weights(
    small_vit: nn.Module, small_conv: nn.Module, tmp_path: Path
) -> None:
    (one,), (other,) = (graphs(model, (3, 32, 32)) for model in (small_vit, small_conv))
    export_coreml(one, tmp_path / "m.mlpackage")
    program = read_program(tmp_path / "m.mlpackage")
    with pytest.raises(UnsupportedError, match="is not the source's"):
        run_on_stored_weights(program, trace(other, 1), torch.zeros(1, 3, 32, 32))


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(32, 32)
        self.register_buffer("mask", torch.full((32, 32), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.project(x) + self.mask).softmax(-1).flatten(2).mean(1)


@pytest.mark.parametrize("precision", ["int8", "palette8"])
def test_a_program_keeps_a_mask_of_infinities_where_it_is(precision: str, tmp_path: Path) -> None:
    model = _Masked().eval()
    (graph,) = graphs(model, (3, 32, 32))
    export_coreml(graph, tmp_path / "m.mlpackage", precision=precision, palette_mode="uniform")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    expected = run_on_stored_weights(read_program(tmp_path / "m.mlpackage"), trace(graph, 1), x)
    (actual,) = CoreMLExecutor(tmp_path / "m.mlpackage").run({"image": x.numpy()}).values()
    assert np.isfinite(expected).all() and np.abs(actual - expected).max() < 2e-3


def test_a_constant_that_is_joined_to_others_is_no_obstacle(tmp_path: Path) -> None:
    model = DeiT(dim=520, depth=1, heads=2, patch_size=16, img_size=32, num_classes=6).eval()
    (graph,) = graphs(model, (3, 32, 32))  # its class token is larger than what is left alone
    for precision in ("int8", "palette8"):
        path = tmp_path / f"{precision}.mlpackage"
        made = export_coreml(graph, path, precision=precision, palette_mode="uniform")
        assert made.details["compressed_tensors"] > 0
