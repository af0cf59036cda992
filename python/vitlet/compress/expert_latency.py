"""What a token costs in the dense and in the shift layer of a mixture, measured on this machine.

Mixtures are trained so that both of their layers take the same time (ShiftAddViT, You et al., 2023,
https://arxiv.org/abs/2306.06446), which depends on the processor and on a layer's size. The file::

    {"format": "vitlet-experts", "version": 1, "machine": {"isa": "avx2", ...}, "threads": 1,
     "layers": [{"in": 96, "out": 384, "tokens": 50, "dense_us": 0.9, "shift_us": 0.6}, ...]}

Times are microseconds per token.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitlet import ops
from vitlet._C import active_isa
from vitlet.errors import CorruptInputError, StorageError, UsageError

FORMAT, VERSION = "vitlet-experts", 1
Size = tuple[int, int]  # of a layer: numbers in and out


@dataclass(frozen=True)
class ExpertTime:
    """Microseconds per token of the two layers of a mixture, at so many tokens."""

    tokens: int
    dense_us: float
    shift_us: float


@dataclass(frozen=True)
class ExpertTimes:
    """Times of mixtures of several sizes on one machine.

    Attributes:
        layers: by the layer's size, numbers in and out.
        threads: of each call.
        machine: what was measured.
    """

    layers: Mapping[Size, ExpertTime]
    threads: int
    machine: Mapping[str, str]

    def of(self, size: Size) -> tuple[float, float]:
        """Return the times of the dense and the shift layer of this size.

        Raises:
            UsageError: the size was not measured.
        """
        found = self.layers.get(size)
        if found is None:
            known = ", ".join(f"{k}x{n}" for k, n in self.layers)
            raise UsageError(
                f"no time of a layer {size[0]}x{size[1]} among those measured ({known}): "
                "measure this model with vitlet bench MODEL --experts FILE"
            )
        return found.dense_us, found.shift_us

    def to_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "machine": dict(self.machine),
            "threads": self.threads,
            "layers": [{"in": k, "out": n, **vars(t)} for (k, n), t in self.layers.items()],
        }

    @classmethod
    def from_json(cls, content: Any) -> ExpertTimes:
        """Return what `to_json` gave.

        Raises:
            UsageError: it is something else, or a time is not positive.
        """
        try:
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
            layers = {
                (int(row["in"]), int(row["out"])): ExpertTime(
                    int(row["tokens"]), float(row["dense_us"]), float(row["shift_us"])
                )
                for row in content["layers"]
            }
            if not all(0 < t < float("inf") for e in layers.values() for t in vars(e).values()):
                raise ValueError("a time is not a positive number")
            return cls(layers, int(content["threads"]), dict(content["machine"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"expected what vitlet bench --experts wrote, version {VERSION}: {error}"
            ) from None


def read_times(path: str | os.PathLike[str]) -> ExpertTimes:
    """Read a file of times.

    Raises:
        UsageError: there is none, or it holds something else.
        CorruptInputError: it is no JSON.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CorruptInputError(f"{path} is no JSON: {error}") from None
    return ExpertTimes.from_json(content)


def write_times(times: ExpertTimes, path: str | os.PathLike[str]) -> None:
    """Write a file of times.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        Path(path).write_text(json.dumps(times.to_json(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def measure_times(
    layers: Iterable[tuple[Size, int]], *, threads: int = 1, seconds: float = 0.3
) -> ExpertTimes:
    """Measure `vitlet.ops.linear` and `vitlet.ops.shift_linear` in turn, weights packed.

    Args:
        layers: sizes, numbers in and out, and how many tokens of an image pass; of equal sizes the
            one with the most tokens is measured.
        threads: of each call. With one, time is that thread's processor time.
        seconds: for each size.

    Returns:
        Medians over the rounds.

    Raises:
        UsageError: no layer at all.
    """
    most: dict[Size, int] = {}
    for size, tokens in layers:
        most[size] = max(tokens, most.get(size, 1))
    if not most:
        raise UsageError("no linear layer whose time could be measured")
    machine = {"processor": platform.machine(), "isa": active_isa(), "system": platform.system()}
    found = {size: _measure(size, tokens, threads, seconds) for size, tokens in most.items()}
    return ExpertTimes(found, threads, machine)


def _measure(size: Size, tokens: int, threads: int, seconds: float) -> ExpertTime:
    inputs, outputs = size
    random = np.random.default_rng(0)
    x = random.standard_normal((tokens, inputs), np.float32)
    weight = random.standard_normal((outputs, inputs), np.float32)
    bias = random.standard_normal(outputs, np.float32)
    dense, shift = ops.pack_linear_weight(weight), ops.pack_shift_weight(weight)
    calls: Sequence[Callable[[], object]] = (
        lambda: ops.linear(x, dense, bias, threads=threads),
        lambda: ops.shift_linear(x, shift, bias, threads=threads),
    )
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < end:
        for call, kept in zip(calls, times, strict=True):
            call()  # the other's data leave the cache
            begin = clock()
            call()
            call()
            kept.append((clock() - begin) / 2)
    # A clock too coarse for a tiny layer must not give a time of zero.
    per_token = [max(statistics.median(kept), 1e-9) * 1e6 / tokens for kept in times]
    return ExpertTime(tokens, float(f"{per_token[0]:.4g}"), float(f"{per_token[1]:.4g}"))
