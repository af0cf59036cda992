"""Matches every weight of a compiled program with a tensor of the source, element by element.

A converter renames, transposes, reshapes, rounds and merges constants. A weight counts as the
source's tensor only if, in one of the orders that a reshape or transposition can give, every
element lies within the rounding of its format: a swapped channel, a flipped bit or a
stale checkpoint has nowhere to hide. Merges that converters do (a convolution times a per-channel
scale) are tried too.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.export.coreml_program import HALF_STEP, Weight

Array = NDArray[Any]
_SAMPLES = 8  # elements compared before all of them are


@dataclass(frozen=True)
class Source:
    """One tensor of the source graph.

    Attributes:
        values: float32.
        roots: the parameters and buffers that it was computed from; itself for one of those.
        users: numbers of the traced nodes that take it.
    """

    values: Array
    roots: tuple[str, ...]
    users: tuple[int, ...] = ()


@dataclass
class Matching:
    """What belongs to what.

    Attributes:
        pairs: weight -> source tensors whose product it is (one, or a tensor and a scale).
        strange: weight -> why it is no tensor of the source's.
        unused: parameters and buffers that the program does not hold.
        worst: largest error among the matched weights, relative to the tensor's largest magnitude.
    """

    pairs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    strange: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    worst: float = 0.0


def match_weights(
    weights: Sequence[Weight],
    sources: Mapping[str, Source],
    scalars: Sequence[float] = (),
    optional: frozenset[str] = frozenset(),
) -> Matching:
    """Find the source tensors of every weight.

    Args:
        weights: of the program.
        sources: name -> tensor, with values that are computed from constants only.
        scalars: numbers in the source graph that a converter may multiply into a weight.
        optional: roots that a program need not hold.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, source in sources.items():
        by_size[source.values.size].append(name)
    found = Matching()
    for weight in weights:
        if not weight.values.any():
            # A bias that an operation asks for and the source does not have. It stands for no
            # tensor but one of zeros, which need not be there at all.
            continue
        match = _find(weight, sources, by_size, scalars)
        if match is not None:
            names, error = match
            found.pairs[weight.name] = names
            found.worst = max(found.worst, error)
        else:
            found.strange[weight.name] = _explain(weight, sources, by_size)
    used = {root for names in found.pairs.values() for n in names for root in sources[n].roots}
    # Converters keep one copy of equal tensors.
    contents = {_content(sources[name].values) for name in used if name in sources}
    roots = {root for source in sources.values() for root in source.roots}
    found.unused = sorted(
        root
        for root in roots - used - optional
        # Zeros added and ones multiplied may be left out.
        if root in sources
        and not _neutral(sources[root].values)
        and _content(sources[root].values) not in contents
    )
    return found


def _content(values: Array) -> tuple[tuple[int, ...], bytes]:
    return values.shape, hashlib.sha256(values.tobytes()).digest()


def _neutral(values: Array) -> bool:
    return not values.any() or bool((values == 1).all())


def _find(
    weight: Weight,
    sources: Mapping[str, Source],
    by_size: Mapping[int, list[str]],
    scalars: Sequence[float],
) -> tuple[tuple[str, ...], float] | None:
    same = by_size.get(weight.values.size, [])
    if not np.isfinite(weight.values).all():
        return _infinite(weight, sources, same)
    # A name that speaks of the tensor is tried first; equal tensors then pair up sensibly.
    for name in sorted(same, key=lambda n: not _alike(n, weight.name)):
        for layout in layouts(sources[name].values, weight.values.shape):
            error = _error(weight, layout)
            if error is not None:
                return (name,), error
    if weight.values.ndim == 0:
        return None
    rows = weight.values.shape[0]
    for name in same:
        for layout in layouts(sources[name].values, weight.values.shape):
            ratio = _row_ratio(weight.values, layout)
            if ratio is None:
                continue
            for factor in scalars:
                if np.allclose(ratio, factor, rtol=2e-2):
                    error = _error(weight, layout * factor)
                    if error is not None:
                        return (name,), error
            for other in by_size.get(rows, []):
                scale = sources[other].values.ravel()
                if other == name or not np.allclose(ratio, scale, rtol=0.2, atol=1e-6):
                    continue
                column = scale.reshape(-1, *[1] * (weight.values.ndim - 1))
                error = _error(weight, layout * column)
                if error is not None:
                    return (name, other), error
    return _product(weight, sources, same) if weight.values.ndim == 1 else None


def _infinite(
    weight: Weight, sources: Mapping[str, Source], same: Sequence[str]
) -> tuple[tuple[str, ...], float] | None:
    """Find the tensor of a weight with infinite values (an attention mask), all in its places."""
    spared = np.isinf(weight.values)
    rest = replace(weight, values=np.where(spared, np.float32(0), weight.values))
    for name in same:
        for layout in layouts(sources[name].values, weight.values.shape):
            if np.array_equal(layout[spared], weight.values[spared]):
                error = _error(rest, np.where(spared, np.float32(0), layout))
                if error is not None:
                    return (name,), error
    return None


def _product(
    weight: Weight, sources: Mapping[str, Source], same: Sequence[str]
) -> tuple[tuple[str, ...], float] | None:
    """Find two vectors whose product the weight is: a bias times a layer scale."""
    for one, two in itertools.combinations(same, 2):
        exact = sources[one].values.ravel() * sources[two].values.ravel()
        error = _error(weight, exact)
        if error is not None:
            return (one, two), error
    return None


def layouts(values: Array, shape: tuple[int, ...]) -> Iterator[Array]:
    """Give the tensor in every order that a reshape or transposition into `shape` can give.

    Height and width of a kernel keep their order: swapped they are another kernel.
    """
    yield values.reshape(shape)
    squeezed = values.squeeze()
    wanted = tuple(size for size in shape if size != 1)
    if not 1 < squeezed.ndim <= 4:
        return
    kernel = values.ndim == len(shape) == 4 and min(values.shape[2:]) > 1
    last = squeezed.ndim - 1
    for order in itertools.permutations(range(squeezed.ndim)):
        if kernel and order.index(last) < order.index(last - 1):
            continue
        if order != tuple(range(squeezed.ndim)):
            if tuple(squeezed.shape[axis] for axis in order) == wanted:
                yield squeezed.transpose(order).reshape(shape)


def _error(weight: Weight, exact: Array) -> float | None:
    """Return the largest error relative to the tensor's size, or None if any element is off."""
    spots = np.linspace(0, exact.size - 1, min(_SAMPLES, exact.size)).astype(np.int64)
    if np.ndim(weight.step) == 0:
        few = exact.reshape(-1)[spots]
        if not (np.abs(weight.values.reshape(-1)[spots] - few) <= weight.allowed(few)).all():
            return None
    off = np.abs(weight.values - exact)
    # Beside an infinite value any error would be allowed.
    if not np.isfinite(off).all() or not (off <= weight.allowed(exact)).all():
        return None
    if weight.palette is not None and _rms(off) > _grid_error(exact, weight.palette.size):
        return None
    return float(off.max() / max(np.abs(exact).max(), 1e-30))


def _rms(values: Array) -> float:
    return float(np.sqrt((values**2).mean()))


def _grid_error(exact: Array, entries: int) -> float:
    """Return the error that a useless table of so many entries would exceed.

    Evenly spaced entries over the range give an RMS error of a step over sqrt(12); chosen ones
    give less. A table of zeros has the nearest entry everywhere and is still wrong.
    """
    step = (exact.max() - exact.min()) / max(entries - 1, 1)
    return float(1.5 * step / np.sqrt(12)) + HALF_STEP * float(np.abs(exact).max())


def _row_ratio(values: Array, exact: Array) -> Array | None:
    """Return per row how many times `exact` the values are, if every row is such a multiple."""
    left, right = values.reshape(len(values), -1), exact.reshape(len(values), -1)
    power = (right**2).sum(axis=1)
    if (power == 0).any():
        return None
    ratio: Array = (left * right).sum(axis=1) / power
    rest = np.abs(left - ratio[:, None] * right).max()
    return ratio if rest <= 0.2 * np.abs(left).max() else None


def _alike(source: str, weight: str) -> bool:
    return source.replace(".", "_") in weight


def _explain(
    weight: Weight, sources: Mapping[str, Source], by_size: Mapping[int, list[str]]
) -> str:
    """Say what an unmatched weight resembles most and where it differs."""
    bad = int((~np.isfinite(weight.values)).sum())
    if bad:
        return f"{bad} of {weight.values.size} values are NaN or infinite"
    best: tuple[float, str, int] | None = None
    for name in by_size.get(weight.values.size, []):
        for layout in layouts(sources[name].values, weight.values.shape):
            off = np.abs(weight.values - layout) > weight.allowed(layout)
            share = float(off.mean())
            if best is None or share < best[0]:
                best = (share, name, int(off.sum()))
    if best is None:
        return f"the source has no tensor of {weight.values.size} elements"
    return f"nearest is {best[1]}, with {best[2]} of {weight.values.size} values different"
