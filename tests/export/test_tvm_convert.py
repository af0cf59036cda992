"""Our torch operators in programs that TVM compiles, as loops and as calls of the C++ kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tvm_modules import Attention, Linears, Mixer, graph_of

from vitlet.errors import UnsupportedError
from vitlet.export.tvm import export_tvm
from vitlet.layers.shift_linear import ShiftLinear
from vitlet.runtime.tvm import TvmEngine


def answers(path: Path, x: Tensor, threads: int = 1) -> np.ndarray:
    return TvmEngine(path, threads=threads).run({"image": x.numpy()})["logits"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Mixer, Linears, Attention])
@pytest.mark.parametrize("batch", [2, "dyn"])
def test_loops_and_kernels_compute_what_torch_does(
    kind: type[nn.Module], batch: int | str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = kind()
    x = torch.randn(2, *module.shape)  # type: ignore[misc]
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    for extern in (False, True) if batch == "dyn" else (False,):
        path = tmp_path / f"{extern}.tvm.so"
        made = export_tvm(graph_of(module), path, batch=batch, extern=extern)
        assert made.details.get("extern") == ("vitlet" if extern else None)
        for threads in (1, 2):
            got = answers(path, x, threads)
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_library_calls_vitlet_only_if_that_was_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, *Mixer.shape)
    called = {}
    for extern in (False, True):
        path = tmp_path / f"{extern}.tvm.so"
        export_tvm(graph_of(Mixer()), path, extern=extern)
        _, calls = TvmEngine(path).run_traced({"image": x.numpy()})
        called[extern] = calls[0][0]
    assert called[False] == "additive_token_mixer"
    assert called[True] == "vitlet.additive_token_mixer.fp32"


def test_weights_stay_in_four_bits(tmp_path: Path) -> None:
    class Wide(nn.Module):
        shape = (1, 512)

        def __init__(self) -> None:
            super().__init__()
            self.layer = ShiftLinear(512, 2048)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).flatten(1)

    export_tvm(graph_of(Wide()), tmp_path / "m.tvm.so")
    assert 512 * 2048 / 2 < (tmp_path / "m.tvm.so").stat().st_size < 512 * 2048 / 2 * 1.3


def test_refuses_weights_that_the_graph_computes_before_it_translates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ended in the middle, TVM would write of its own state on stderr.
    monkeypatch.setattr("tvm.relax.frontend.torch.from_exported_program", None)

    class Doubled(Linears):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.ops.vitlet.shift_linear(x, self.first.weight * 2)
            return y.flatten(1)

    with pytest.raises(UnsupportedError, match=r"shift_linear.*weight must be a parameter"):
        export_tvm(graph_of(Doubled()), tmp_path / "m.tvm.so")


def test_refuses_kernels_on_another_machine(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not go with aarch64-linux-gnu"):
        export_tvm(
            graph_of(Mixer()), tmp_path / "m.tvm.so", triple="aarch64-linux-gnu", extern=True
        )
