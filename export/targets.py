"""Which targets there are, what they are also called, and which arguments each one takes.

Everything is checked here, before any work starts, and nothing is ever changed silently: an
argument that a target cannot take is refused by name. The command line reads the same table. Needs
no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from vitlet.errors import UnsupportedError, UsageError
from vitlet.runtime.manifest import TARGETS, Target

Batch: TypeAlias = int | tuple[int, int] | Literal["dyn"]
MAX_BATCH = 4096


@dataclass(frozen=True)
class TargetRules:
    """What one target takes.

    Attributes:
        aliases: other names people use for it.
        precisions: weight and compute formats; the first is the default.
        preprocess: where preprocessing may live; the first is the default.
        batches: kinds of batch: "fixed", "ranged", "dyn".
        arguments: names of the arguments of `vitlet.export` that only some targets take.
        values: for such arguments, the values that are taken, where they can be listed.
        extra: the pip extra that brings the compiler.
    """

    aliases: tuple[str, ...]
    precisions: tuple[str, ...]
    preprocess: tuple[str, ...]
    batches: tuple[str, ...]
    arguments: tuple[str, ...]
    values: Mapping[str, tuple[Any, ...]]
    extra: str


# Who will read an ONNX file decides its opset. Native LayerNormalization needs 17, native Gelu 20;
# below that they are spelled out in simpler operators. Only ONNX Runtime is run here; for readers
# whose age is not known 17 is the most careful choice, and a number can always be given instead.
ONNX_CONSUMERS: Mapping[str, int] = {
    "onnxruntime": 20,
    "onnxruntime-web": 17,
    "openvino": 17,
    "tensorrt": 17,
}
# How operators of vitlet compute: see docs/export.md.
ACCELERATE = ("fp32", "bf16", "int8")
OPSETS = (17, 18, 19, 20, 21)

RULES: Mapping[Target, TargetRules] = {
    "onnx": TargetRules(
        aliases=("ort", "onnxruntime", "web", "onnxruntime-web"),
        precisions=("fp32", "fp16"),
        preprocess=("none", "in-graph"),
        batches=("fixed", "ranged", "dyn"),
        arguments=("opset", "preprocess", "accelerate", "accelerate_table"),
        values={"opset": (*OPSETS, *ONNX_CONSUMERS), "accelerate": ACCELERATE},
        extra="onnx",
    ),
    "coreml": TargetRules(
        aliases=("ios", "apple", "mlpackage", "mlprogram", "mac", "macos", "iphone"),
        precisions=("fp16", "fp32", "int8", "palette4", "palette6", "palette8"),
        preprocess=("image-type", "none"),
        batches=("fixed", "ranged"),
        arguments=("ios", "palette_mode", "preprocess", "keep_fp32", "xctest"),
        values={"ios": (16, 17, 18), "palette_mode": ("uniform", "kmeans")},
        extra="coreml",
    ),
    "tvm": TargetRules(
        aliases=("relax", "llvm", "so"),
        precisions=("fp32",),
        preprocess=("none",),
        batches=("fixed", "dyn"),
        arguments=(
            "triple",
            "tvm_extern",
            "tvm_target",
            "tvm_tune",
            "tvm_tune_minutes",
            "tvm_records",
        ),
        values={"tvm_extern": ("vitlet",)},
        extra="tvm",
    ),
}


def parse_targets(names: str | Sequence[str]) -> tuple[Target, ...]:
    """Return the targets meant by names, aliases, comma lists or "all", each once, in our order.

    Raises:
        UsageError: an unknown name; the message has the nearest one.
    """
    if isinstance(names, str):
        names = [names]
    wanted = [part.strip().lower() for name in names for part in name.split(",") if part.strip()]
    if not wanted:
        raise UsageError(f"no target given: choose from {', '.join(TARGETS)}")
    known: dict[str, Target] = {alias: t for t, rule in RULES.items() for alias in rule.aliases}
    known.update({target: target for target in TARGETS})
    found: set[Target] = set()
    for name in wanted:
        if name == "all":
            found.update(TARGETS)
        elif name in known:
            found.add(known[name])
        else:
            near = difflib.get_close_matches(name, [*known, "all"], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(TARGETS)}"
            raise UsageError(f"unknown target {name!r}: {hint}")
    return tuple(target for target in TARGETS if target in found)


def parse_batch(value: str | int | tuple[int, int]) -> Batch:
    """Read a batch as people write it: 1, "4", "1:8", (1, 8), "dyn".

    Raises:
        UsageError: not one of these, or an empty range.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("dyn", "dynamic"):
            return "dyn"
        parts = text.split(":")
        if len(parts) > 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise UsageError(
                f'batch must be a number, a range such as "1:8", or "dyn", got {value!r}'
            )
        value = int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    low, high = batch_range(value)
    return low if low == high else (low, high)


def batch_range(batch: Batch) -> tuple[int, int]:
    """Return the lowest and highest batch.

    Raises:
        UsageError: below one, or an empty range.
    """
    if batch == "dyn":
        return 1, MAX_BATCH
    low, high = (batch, batch) if isinstance(batch, int) else batch
    if not 1 <= low <= high <= MAX_BATCH:
        raise UsageError(f"batch must be between 1 and {MAX_BATCH}, lowest first, got {batch!r}")
    return low, high


def _batch_kind(batch: Batch) -> str:
    return "fixed" if isinstance(batch, int) else "dyn" if batch == "dyn" else "ranged"


def _takers(field: str, value: str) -> str:
    found = [target for target in TARGETS if value in getattr(RULES[target], field)]
    return ", ".join(found) or "no target"


def check(
    targets: Sequence[Target],
    *,
    batch: Batch,
    precision: Mapping[Target, str],
    arguments: Mapping[str, Any],
) -> None:
    """Refuse what a target cannot take.

    Args:
        targets: the chosen ones.
        batch: of all of them.
        precision: per target.
        arguments: those of `TargetRules.arguments` that were given (not None).

    Raises:
        UnsupportedError: names the argument, the value, and the targets that take it.
    """
    for target in targets:
        rule = RULES[target]
        kind = _batch_kind(batch)
        if kind not in rule.batches:
            raise UnsupportedError(
                f"{target} does not take batch {batch!r} ({kind}): "
                f"taken by {_takers('batches', kind)}; export it on its own with a "
                "fixed batch"
            )
        value = precision[target]
        if value not in rule.precisions:
            raise UnsupportedError(
                f"{target} does not take precision {value!r}: it takes "
                f"{', '.join(rule.precisions)}; {value} is taken by "
                f"{_takers('precisions', value)}"
            )
    for name, value in arguments.items():
        takers = [target for target in targets if name in RULES[target].arguments]
        if not takers:
            raise UnsupportedError(
                f"{name}={value!r} means nothing to {', '.join(targets)}: "
                f"taken by {_takers('arguments', name)}"
            )
        for target in takers:
            allowed = RULES[target].values.get(name)
            if allowed is not None and value not in allowed:
                raise UnsupportedError(
                    f"{target} does not take {name}={value!r}: it takes "
                    f"{', '.join(str(v) for v in allowed)}"
                )


def opset_for(opset: int | str | None) -> int:
    """Return the ONNX opset of a number or a consumer's name; None means current ONNX Runtime."""
    if opset is None:
        return ONNX_CONSUMERS["onnxruntime"]
    return opset if isinstance(opset, int) else ONNX_CONSUMERS[opset]
