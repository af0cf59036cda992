"""CUDA source of whole graphs: nvcc compiles it, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from tvm_modules import graph_of

from vitlet.errors import UsageError
from vitlet.export.tvm_cuda import cuda_source


class Steps(nn.Module):
    """A convolution, products, rows, and one of vitlet's operators."""

    shape = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.fc, self.head = nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        x = nn.functional.gelu(self.fc(x))
        y: Tensor = torch.ops.vitlet.int8_linear(x, self.head.weight, self.head.bias)
        return y.softmax(-1).mean(1)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH: no CUDA compiler")
def test_a_graph_s_source_compiles_for_two_gpus_without_spills(tmp_path: Path) -> None:
    source = cuda_source(graph_of(Steps()))
    for step in ("conv2d", "layer_norm", "matmul", "gelu", "shift_linear", "softmax"):
        assert any(step in name for name in source.kernels)
    assert "__dp4a(" in source.code
    (tmp_path / "kernels.cu").write_text(source.code)
    archs = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    done = subprocess.run(
        ["nvcc", "-std=c++17", *archs, "-fatbin", "-Xptxas", "-v", "-w",
         "-o", tmp_path / "kernels.fatbin", tmp_path / "kernels.cu"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for arch in ("sm_80", "sm_90"):
        found = re.findall(rf"entry function '(\w+)' for '{arch}'", done.stderr)
        assert sorted(found) == sorted(source.kernels)
    assert set(re.findall(r"(\d+) bytes spill stores", done.stderr)) == {"0"}


def test_wrong_wishes_are_refused_before_any_work() -> None:
    graph = graph_of(Steps())
    with pytest.raises(UsageError, match="at least 1, got 0"):
        cuda_source(graph, batch=0)
    with pytest.raises(UsageError, match="such as \"sm_80\", got 'ampere'"):
        cuda_source(graph, arch="ampere")
