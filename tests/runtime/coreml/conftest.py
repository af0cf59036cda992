"""Small Core ML packages, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime_coreml import save
from torch import nn

from vitlet.runtime import CoreMLExecutor
from vitlet.runtime.coreml.quiet import quiet_coremltools


@pytest.fixture
def run_mil(tmp_path: Path) -> Callable[..., list[np.ndarray]]:
    """Build a program, execute it on arrays, return its outputs in order."""
    count = iter(range(1000))

    def run(
        build: Callable[..., Any], *arrays: np.ndarray, ios: int = 17, mode: str = "fp32"
    ) -> list[np.ndarray]:
        with quiet_coremltools():
            from coremltools.converters.mil import Builder as mb
            from coremltools.converters.mil.mil import types

            kinds = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}
            specs = [mb.TensorSpec(a.shape, dtype=kinds[str(a.dtype)]) for a in arrays]
        path = save(build, specs, tmp_path / f"{next(count)}.mlpackage", ios)
        executor = CoreMLExecutor(path, mode)
        feeds = dict(zip([f.name for f in executor.inputs], arrays, strict=True))
        return [*executor.run(feeds).values()]

    return run


@pytest.fixture
def run_torch(tmp_path: Path) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Convert a torch module through torch.export; return (executor's output, torch's)."""

    def run(
        module: nn.Module, *values: torch.Tensor, ios: int = 17, mode: str = "fp32"
    ) -> tuple[np.ndarray, np.ndarray]:
        with quiet_coremltools(), torch.no_grad():
            import coremltools as ct

            expected = module.eval()(*values)
            program = torch.export.export(module, values).run_decompositions({})
            model = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, f"iOS{ios}"),
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )
            model.save(str(tmp_path / "m.mlpackage"))
        executor = CoreMLExecutor(tmp_path / "m.mlpackage", mode)
        feeds = {
            feature.name: np.asarray(value.numpy(), feature.dtype)
            for feature, value in zip(executor.inputs, values, strict=True)
        }
        (actual,) = executor.run(feeds).values()
        return actual, expected.numpy()

    return run
