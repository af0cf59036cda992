"""Writes small Core ML packages; `from runtime_coreml import save` works in every test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitlet.runtime.coreml.quiet import quiet_coremltools


def save(
    build: Callable[..., Any], takes: Sequence[Any], path: Path, ios: int = 17, **more: Any
) -> Path:
    """Write a MIL program as it is, without coremltools' optimizations.

    `takes` are shapes (float32), or TensorSpecs and StateTensorSpecs of the builder; `more` goes to
    `coremltools.convert`.
    """
    with quiet_coremltools():
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb

        target = getattr(ct.target, f"iOS{ios}")
        specs = [mb.TensorSpec(shape) if isinstance(shape, tuple) else shape for shape in takes]
        program = mb.program(input_specs=specs, opset_version=target)(build)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            **{"pass_pipeline": ct.PassPipeline.EMPTY, **more},
        )
        model.save(str(path))
    return path
