"""One compiled file as the truth of another, in any pairing, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from runtime_coreml import save
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.errors import UsageError
from vitlet.export.coreml import export_coreml
from vitlet.export.onnx import export_onnx
from vitlet.export.trace import graphs
from vitlet.export.verify import verify
from vitlet.runtime.coreml.quiet import quiet_coremltools

SHAPE = (3, 32, 32)
LABELS = tuple(f"class {i}" for i in range(10))


@pytest.fixture(scope="module")
def files(
    small_vit: nn.Module, small_spec: Preprocess, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model in four forms, and a model with one wrong layer."""
    folder = tmp_path_factory.mktemp("files")
    graph = graphs(small_vit, SHAPE)[0]
    export_onnx(graph, folder / "plain.onnx")
    export_onnx(graph, folder / "half.onnx", precision="fp16", batch="dyn")
    export_onnx(graph, folder / "pixels.onnx", preprocess=small_spec)
    export_coreml(graph, folder / "phone.mlpackage", preprocess=small_spec, labels=LABELS)
    other = copy.deepcopy(small_vit)
    with torch.no_grad():
        other.get_submodule("blocks.1.fc2").weight[:4].mul_(-1)
    export_onnx(graphs(other, SHAPE)[0], folder / "wrong.onnx")
    return folder


@pytest.mark.parametrize(
    ("subject", "other"),
    [
        ("half.onnx", "plain.onnx"),
        ("plain.onnx", "half.onnx"),  # the limits are those of the coarser
        ("phone.mlpackage", "plain.onnx"),
        ("pixels.onnx", "pixels.onnx"),
    ],
)
def test_files_of_one_model_agree(files: Path, subject: str, other: str) -> None:
    report = verify(files / subject, files / other)
    assert report.passed, report.reasons
    (row,) = report.artifacts
    assert report.against == other and row.method == "executed"
    kinds = {case.name.split("_")[0] for case in row.cases}
    assert {"real", "random", "zeros"} <= kinds
    exact = row.precision == "fp32" and "half" not in other
    assert (row.tolerance["cosine"] > 0.9999) == exact


def test_layers_of_two_files_are_paired_by_content_and_the_wrong_one_is_named(files: Path) -> None:
    report = verify(files / "wrong.onnx", files / "plain.onnx", layers=True)
    (row,) = report.artifacts
    assert row.status == "failed" and row.first_bad is not None
    # Without torch modules the tensors' own names are all there is.
    assert "blocks.1.fc2" in row.first_bad.node, row.first_bad
    bad = [layer for layer in row.layers if layer.mark.startswith("first bad")]
    assert len(bad) == 1 and "blocks.1.fc2" in bad[0].tensor
    before = row.layers[: row.layers.index(bad[0])]
    assert len(before) > 20 and all(layer.agrees for layer in before)


def test_layers_of_a_core_ml_program_against_an_onnx_file(files: Path) -> None:
    report = verify(files / "phone.mlpackage", files / "wrong.onnx", layers=True, inputs="real")
    (row,) = report.artifacts
    assert row.status == "failed" and row.first_bad is not None
    assert "blocks.1.fc2" in row.first_bad.node, row.first_bad
    agreeing = [layer for layer in row.layers if layer.tensor and layer.agrees]
    assert len(agreeing) > 10 and min(layer.snr_db for layer in agreeing) > 20


def test_what_cannot_be_compared_is_refused_with_both_sides_spelled_out(
    files: Path, small_vit: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="give its bundle instead of the file"):
        verify(files / "pixels.onnx", files / "plain.onnx")
    with pytest.raises(UsageError, match="the other way round"):
        verify(files / "plain.onnx", files / "phone.mlpackage")
    with pytest.raises(UsageError, match="weights go with a zoo name"):
        verify(files / "plain.onnx", files / "half.onnx", weights=files / "half.onnx")
    with pytest.raises(UsageError, match="does not exist"):
        verify(files / "plain.onnx", tmp_path / "no.onnx")

    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    export_onnx(graphs(Flat().eval(), (3, 16, 16))[0], tmp_path / "small.onnx")
    with pytest.raises(UsageError, match=r"takes image float32 .*32.* takes image float32 .*16"):
        verify(files / "plain.onnx", tmp_path / "small.onnx")


def test_every_output_is_compared_by_name(tmp_path: Path) -> None:
    from coremltools.converters.mil import Builder as mb

    def build(wrong: float):
        def made(x):
            twice = mb.mul(x=x, y=np.float32(2), name="twice")
            return twice, mb.add(x=x, y=np.float32(1 + wrong), name="more")

        return made

    with quiet_coremltools():
        one = save(build(0), [(1, 5)], tmp_path / "one.mlpackage")
        two = save(build(0.5), [(1, 5)], tmp_path / "two.mlpackage")
    assert verify(one, one).passed
    twice, more = verify(two, one).artifacts
    assert (twice.graph, twice.status) == ("twice", "passed")
    assert (more.graph, more.status) == ("more", "failed")
