"""What an export was asked for, resolved per target and checked before any work. Needs no torch."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitlet.errors import UnsupportedError, UsageError
from vitlet.export.accelerate.table import Table, TableSource, read_table
from vitlet.export.targets import RULES, Batch, check, opset_for, parse_batch, parse_targets
from vitlet.export.tvm_targets import MACHINES, describe
from vitlet.runtime.accelerate import cache_folder
from vitlet.runtime.manifest import Target


@dataclass(frozen=True)
class Tuning:
    """How much to try.

    Attributes:
        trials: schedules to measure for each kernel.
        minutes: after which no more is tried; what was found so far counts.
        records: folder of what was measured, here and before; a processor's in one of its name.
    """

    trials: int
    minutes: float
    records: Path

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"tvm_tune must be at least 1 trial, got {self.trials}")
        if not self.minutes > 0:
            raise UsageError(f"tvm_tune_minutes must be more than 0, got {self.minutes}")


@dataclass(frozen=True)
class Options:
    """Settings of one export.

    Attributes:
        targets: in the order of the manifest.
        batch: of every artefact.
        precision: per target.
        preprocess: per target, where the pixel normalization happens.
        opset: of ONNX files.
        ios: deployment target of Core ML programs.
        palette_mode: how Core ML palettes are found.
        machines: that TVM compiles for, by triple or name; None is this one.
        accelerate: "fp32", "bf16" or "int8" where ONNX files call operators of vitlet; or None.
        accelerate_table: times of layers to decide by; None measures them.
        tvm_extern: "vitlet" where TVM libraries call its C++ kernels; None otherwise.
        keep_fp32: "auto", or names of layers and operations that Core ML programs hold in float32.
        xctest: write a test for Apple devices, of Core ML programs.
        tuning: of TVM libraries; None for none.
    """

    targets: tuple[Target, ...]
    batch: Batch
    precision: dict[Target, str]
    preprocess: dict[Target, str]
    opset: int
    ios: int
    palette_mode: str
    machines: tuple[str | None, ...]
    accelerate: str | None = None
    accelerate_table: Table | None = None
    tvm_extern: str | None = None
    keep_fp32: str | tuple[str, ...] = ()
    xctest: bool = False
    tuning: Tuning | None = None


def resolve(
    targets: str | Sequence[str],
    *,
    batch: str | int | tuple[int, int] = 1,
    precision: str | Mapping[str, str] | None = None,
    preprocess: str | Mapping[str, str] | None = None,
    opset: int | str | None = None,
    ios: int | None = None,
    palette_mode: str | None = None,
    triple: str | Sequence[str] | None = None,
    accelerate: str | None = None,
    accelerate_table: TableSource | None = None,
    tvm_extern: str | None = None,
    keep_fp32: str | Sequence[str] | None = None,
    xctest: bool = False,
    tvm_target: str | Sequence[str] | None = None,
    tvm_tune: int | None = None,
    tvm_tune_minutes: float | None = None,
    tvm_records: str | os.PathLike[str] | None = None,
) -> Options:
    """Check the arguments of `vitlet.export` and fill in each target's defaults.

    Args:
        targets: names or aliases, "all", or a comma list.
        batch: 1, "4", "1:8", (1, 8) or "dyn".
        precision: one for every target; or per target, as a mapping or as
            "onnx=fp16,coreml=palette4".
        preprocess: likewise.
        opset: a number or an ONNX consumer's name.
        ios: 16, 17 or 18.
        palette_mode: "kmeans" or "uniform".
        triple: machines for TVM, as names or a comma list; "native" is this one.
        accelerate: "fp32", "bf16" or "int8", for ONNX in fp32.
        accelerate_table: times of an earlier export: its bundle, a JSON file, or a dictionary.
        tvm_extern: "vitlet", for TVM on this machine.
        keep_fp32: "auto", or names (a sequence, or with commas), for Core ML in less than fp32.
        xctest: write a test for Apple devices, of Core ML programs.
        tvm_target: machines for TVM by name instead: see `vitlet.export.tvm_targets`.
        tvm_tune: schedules that TVM measures for each kernel, on this machine.
        tvm_tune_minutes: after which no more is tried; 30 by default.
        tvm_records: folder of what was measured; in the user's cache by default.

    Raises:
        UsageError: an unknown name, or a value that makes no sense.
        UnsupportedError: an argument that a chosen target cannot take, or that none takes.
    """
    chosen = parse_targets(targets)
    size = parse_batch(batch)
    if isinstance(opset, str) and opset.isdecimal():
        opset = int(opset)
    precisions = _per_target("precision", precision, chosen)
    places = _per_target("preprocess", preprocess, chosen)
    given: dict[str, Any] = {
        "opset": opset,
        "ios": ios,
        "palette_mode": palette_mode,
        "triple": triple,
        "accelerate": accelerate,
        "accelerate_table": accelerate_table,
        "tvm_extern": tvm_extern,
        "keep_fp32": keep_fp32,
        "xctest": xctest or None,
        "tvm_target": tvm_target,
        "tvm_tune": tvm_tune,
        "tvm_tune_minutes": tvm_tune_minutes,
        "tvm_records": tvm_records,
    }
    resolved: dict[Target, str] = {t: precisions.get(t, RULES[t].precisions[0]) for t in chosen}
    check(
        chosen,
        batch=size,
        precision=resolved,
        arguments={name: value for name, value in given.items() if value is not None},
    )
    for target, place in places.items():
        if place not in RULES[target].preprocess:
            takers = [t for t in RULES if place in RULES[t].preprocess]
            raise UnsupportedError(
                f"{target} does not take preprocess={place!r}: it takes "
                f"{', '.join(RULES[target].preprocess)}; for some targets only, write "
                f'"{(takers or ["onnx"])[0]}={place}"'
            )
    if palette_mode is not None and not resolved["coreml"].startswith("palette"):
        raise UnsupportedError(
            f"palette_mode={palette_mode!r} means nothing to precision {resolved['coreml']!r}: "
            "it is for palette4, palette6 and palette8"
        )
    if keep_fp32 is not None and resolved["coreml"] == "fp32":
        raise UnsupportedError(
            "keep_fp32 means nothing to precision 'fp32': all of such a program is float32"
        )
    if accelerate is not None and resolved["onnx"] != "fp32":
        raise UnsupportedError(
            f"accelerate={accelerate!r} is for float32 files: it does not go with precision "
            f"{resolved['onnx']!r}"
        )
    if accelerate_table is not None and accelerate is None:
        raise UsageError("accelerate_table holds times for accelerate: give that too")
    if triple is not None and tvm_target is not None:
        raise UsageError("tvm_target and triple both name machines: give one of them")
    machines = _triples(triple) if tvm_target is None else _named(tvm_target)
    if tvm_extern is not None:
        what = f"tvm_extern={tvm_extern!r} calls the C++ kernels of this machine"
        _check_runs_here(what, machines)
    tuning = None
    if tvm_tune is not None:
        minutes = 30.0 if tvm_tune_minutes is None else tvm_tune_minutes
        records = cache_folder() / "tvm" if tvm_records is None else Path(tvm_records)
        tuning = Tuning(tvm_tune, minutes, records)
        _check_runs_here("tvm_tune measures on this machine", machines)
    elif tvm_tune_minutes is not None or tvm_records is not None:
        raise UsageError("tvm_tune_minutes and tvm_records are for tvm_tune: give that too")
    defaults: dict[Target, str] = {t: RULES[t].preprocess[0] for t in chosen}
    # An image input takes one picture; asked for more, a tensor input is what Core ML has.
    if "coreml" in defaults and size != 1:
        defaults["coreml"] = "none"
    if places.get("coreml") == "image-type" and size != 1:
        raise UnsupportedError(
            f"a Core ML image input takes one picture at a time, batch {size!r} was asked for: "
            'use batch 1, or preprocess "coreml=none"'
        )
    return Options(
        targets=chosen,
        batch=size,
        precision=resolved,
        preprocess={**defaults, **places},
        opset=opset_for(opset),
        ios=16 if ios is None else ios,
        palette_mode=palette_mode or "kmeans",
        machines=machines,
        accelerate=accelerate,
        accelerate_table=None if accelerate_table is None else read_table(accelerate_table),
        tvm_extern=tvm_extern,
        keep_fp32=_kept(keep_fp32),
        xctest=xctest,
        tuning=tuning,
    )


def _kept(value: str | Sequence[str] | None) -> str | tuple[str, ...]:
    if value is None or value == "auto":
        return value or ()
    names = value.split(",") if isinstance(value, str) else list(value)
    names = [name.strip() for name in names]
    if not names or "" in names or "auto" in names:
        raise UsageError(
            f'keep_fp32 must be "auto", or name layers such as blocks.0.norm1,head; got {value!r}'
        )
    return tuple(dict.fromkeys(names))


def _per_target(
    name: str, value: str | Mapping[str, str] | None, chosen: Sequence[Target]
) -> dict[Target, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        if "=" not in value:
            return {target: value for target in chosen}
        pairs = [part.partition("=") for part in value.split(",")]
        value = {key.strip(): setting.strip() for key, _, setting in pairs}
    found: dict[Target, str] = {}
    for key, setting in value.items():
        (target,) = parse_targets(key) if key != "all" else (None,)
        if target is None or target not in chosen:
            raise UsageError(
                f"{name} is set for {key!r}, which is not among the targets {', '.join(chosen)}"
            )
        found[target] = setting
    return found


def _triples(value: str | Sequence[str] | None) -> tuple[str | None, ...]:
    if value is None:
        return (None,)
    names = value.split(",") if isinstance(value, str) else list(value)
    found = [None if name.strip() == "native" else name.strip() for name in names]
    if not found or any(name == "" for name in found):
        raise UsageError(f"triple must name machines such as aarch64-linux-gnu, got {value!r}")
    return tuple(dict.fromkeys(found))


def _named(value: str | Sequence[str]) -> tuple[str | None, ...]:
    """Read names of machines; features in "llvm ... -mattr=+a,+b" hold commas of their own."""
    names = re.split(r",(?![+-])", value) if isinstance(value, str) else list(value)
    found = [name.strip() for name in names]
    for name in found:
        describe(name)
    return tuple(dict.fromkeys(None if name == "native" else name for name in found))


def _check_runs_here(what: str, machines: tuple[str | None, ...]) -> None:
    """Refuse another machine, for what is done on this one."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    for name in machines:
        known = name is not None and (name in MACHINES or name.startswith("llvm"))
        triple = describe(name).triple if known and name else name
        if triple not in (None, f"{machine}-linux-gnu"):
            raise UnsupportedError(f"{what} ({machine}): it does not go with triple {name!r}")
