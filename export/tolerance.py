"""How close is close enough: one table, per target and precision.

The numbers are for outputs compared with the float32 source. float32 targets differ by the
order of sums: measured 1e-7 to 4e-6 relative over the zoo, so 1e-4 leaves room for other
processors and still catches a wrong layer. float16 keeps 11 bits and the errors of a few dozen
layers add up. For 8-bit and palettized weights the figures measured on trained models are the
guide: casvit_fashion as a Core ML program, executed as declared, has a cosine of at least 0.9999
and a relative error of at most 4e-3 with int8 weights and 9e-3 with palette8, 0.9993 and 5e-2 with
palette6, 0.9963 and 8e-2 with palette4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vitlet.errors import UsageError


@dataclass(frozen=True)
class Tolerance:
    """Limits for one artefact. Written on the command line as ``cosine=.999,rel=1e-3,top1=1``.

    Attributes:
        cosine: lowest cosine between an output row and the source's.
        rel: largest absolute difference, relative to the largest magnitude of the source's row.
        max: largest absolute difference, or None for no limit of that kind.
        top1: lowest share of rows with the same best class (ties within `rel` count as agreed).
        diff: largest error of the differences between outputs, relative to the largest difference.
        noise: rounding floor, relative to the output. Where the source's outputs differ so little
            between inputs that this floor alone exceeds `diff`, the proof is reported as weak.
    """

    cosine: float
    rel: float
    diff: float
    noise: float
    top1: float = 1.0
    max: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return dict(self.__dict__)


EXACT = Tolerance(cosine=0.99999, rel=1e-4, diff=1e-2, noise=2e-6)
HALF = Tolerance(cosine=0.999, rel=2e-2, diff=5e-2, noise=2e-3)
# bfloat16 products summed in float32, in one layer of each block.
BFLOAT16 = Tolerance(cosine=0.9995, rel=3e-2, diff=5e-2, noise=5e-3)
INT8 = Tolerance(cosine=0.99, rel=0.15, diff=0.3, noise=2e-2, top1=0.75)
PALETTE8 = Tolerance(cosine=0.99, rel=0.15, diff=0.3, noise=2e-2, top1=0.75)
PALETTE6 = Tolerance(cosine=0.97, rel=0.25, diff=0.5, noise=5e-2, top1=0.5)
PALETTE4 = Tolerance(cosine=0.90, rel=0.5, diff=0.8, noise=0.1, top1=0.5)

TABLE: dict[tuple[str, str], Tolerance] = {
    ("onnx", "fp32"): EXACT,
    ("onnx", "fp16"): HALF,
    ("onnx", "bf16"): BFLOAT16,  # what vitlet's kernels compute in a file accelerated with bf16
    ("onnx", "int8"): INT8,
    ("tvm", "fp32"): EXACT,
    ("tvm", "fp16"): HALF,
    ("tvm", "int8"): INT8,  # shift layers and binary attention
    ("coreml", "fp32"): EXACT,
    ("coreml", "fp16"): HALF,
    ("coreml", "int8"): INT8,
    ("coreml", "palette8"): PALETTE8,
    ("coreml", "palette6"): PALETTE6,
    ("coreml", "palette4"): PALETTE4,
}


def tolerance_for(
    target: str, precision: str, override: dict[str, float] | None = None
) -> Tolerance:
    """Return the table's limits with the user's on top.

    Raises:
        UsageError: the table has no such precision for the target and no override gives everything.
    """
    base = TABLE.get((target, precision))
    if base is None:
        raise UsageError(f"no tolerance is known for {target} {precision}: the table has {_keys()}")
    return replace(base, **override) if override else base


def _keys() -> str:
    return ", ".join(f"{target} {precision}" for target, precision in TABLE)


def parse_tolerance(text: str) -> dict[str, float]:
    """Read ``cosine=.999,max=1e-3,top1=1.0``; the keys are the fields of `Tolerance`.

    Raises:
        UsageError: an unknown key, a key twice, or a value that is not a number in its range.
    """
    found: dict[str, float] = {}
    names = tuple(Tolerance.__dataclass_fields__)
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in names or key in found:
            raise UsageError(
                f"{part.strip()!r} is not a tolerance: write for example "
                f"cosine=.999,max=1e-3,top1=1.0 (each once, of {', '.join(names)})"
            )
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        highest = 1.0 if key in ("cosine", "top1") else float("inf")
        if not 0 <= number <= highest or number == float("inf"):
            raise UsageError(f"the tolerance {key} must be from 0 to {highest:g}, got {value!r}")
        found[key] = number
    return found
