"""Smaller weights for Core ML programs, and a count of what was really made smaller."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitlet.errors import UnsupportedError

# coremltools leaves tensors of up to 2048 elements alone by default and says nothing: on a small
# model that is every tensor. Below this a palette's table and padding eat what it saves.
SMALLEST = 512
_COMPRESSED = (
    "constexpr_affine_dequantize",
    "constexpr_blockwise_shift_scale",
    "constexpr_lut_to_dense",
    "constexpr_sparse_to_dense",
)


def compress(model: Any, precision: str, palette_mode: str) -> tuple[Any, dict[str, Any]]:
    """Compress the weights of a Core ML program.

    Args:
        model: a coremltools MLModel of type mlprogram.
        precision: "int8", "palette4", "palette6" or "palette8"; any other leaves it as it is.
        palette_mode: "kmeans" or "uniform".

    Returns:
        (the model, facts for the manifest: tensors compressed, left as they were, and the mode).

    Raises:
        UnsupportedError: not one tensor was compressed.
    """
    if precision in ("fp16", "fp32"):
        return model, {}
    import coremltools.optimize.coreml as cto

    if precision == "int8":
        settings: Any = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", weight_threshold=SMALLEST
        )
        quantize, mode = cto.linear_quantize_weights, "linear symmetric, per channel"
    else:
        bits = int(precision.removeprefix("palette"))
        settings = cto.OpPalettizerConfig(mode=palette_mode, nbits=bits, weight_threshold=SMALLEST)
        quantize, mode = cto.palettize_weights, palette_mode
    chosen = cto.OptimizationConfig(global_config=settings)
    for name in _infinite(model):
        chosen.set_op_name(name, None)
    model = quantize(model, chosen)
    done, large = count_compressed(model.get_spec())
    if done == 0:
        raise UnsupportedError(
            f"{precision} compressed none of the weights: no tensor has more than {SMALLEST} "
            "elements; export with precision fp16"
        )
    return model, {"compressed_tensors": done, "uncompressed_tensors": large, "mode": mode}


def _infinite(model: Any) -> list[str]:
    """Return the names of the tensors with infinite values, such as an attention mask.

    They have neither a step nor a palette: compressed, every value would be NaN.
    """
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = model.get_spec()
    program = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    return [
        operation.name
        for function in program.functions.values()
        for operation in function.operations
        if operation.op_type == "const"
        and isinstance(operation.val.val, np.ndarray)
        and operation.val.val.dtype.kind == "f"
        and not np.isfinite(operation.val.val).all()
    ]


def count_compressed(spec: Any) -> tuple[int, int]:
    """Return how many weights of a program are compressed, and how many large ones are not.

    Args:
        spec: the model's protobuf specification.
    """
    done = large = 0
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type in _COMPRESSED:
                    done += 1
                elif operation.type == "const" and _is_large(operation):
                    large += 1
    return done, large


def _is_large(operation: Any) -> bool:
    value = operation.attributes["val"]
    size = 1
    for dimension in value.type.tensorType.dimensions:
        size *= dimension.constant.size
    # A compressed tensor's own parts (indices, tables) are attributes of its operation, not consts.
    return size > SMALLEST and value.HasField("blobFileValue")
