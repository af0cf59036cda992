"""How fast is vitlet's image preprocessing beside Pillow and numpy?

    python benchmarks/resize_normalize.py [--seconds 1.0] [--json FILE]
    VITLET_ISA=avx2 python benchmarks/resize_normalize.py      with a lesser instruction set

Four ways from a picture in memory to a normalized float32 (C, H, W) array, timed in turn in one
process on one processor core, in milliseconds of that thread's processor time (which a busy machine
does not inflate; nothing here waits or uses a second thread):

    vitlet          vitlet.ops.resize_normalize on the uint8 array
    vitlet, image   vitlet.data.preprocess on a Pillow image, whose pixels are first made an array
    Pillow          image.resize(...).crop(...), then numpy: what torchvision's transforms do
    Pillow, box     image.resize(window, box=...), which also resizes nothing outside the window;
                    its pixels differ a little from the models' own pipeline

The numpy part works in place on float32, the fastest form that was found. First it is checked that
vitlet's result equals Pillow's bit by bit. Ratios are medians over rounds of the quotient within a
round, so that a disturbance of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from vitlet import _C
from vitlet.data.preprocess import geometry, preprocess
from vitlet.data.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitlet.ops.resize_normalize import resize_normalize

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
GREY = {"mean": (0.286,), "std": (0.353,), "mode": "L"}
BICUBIC = {"interpolation": "bicubic"}
# name: (width, height, what the model expects)
CASES: dict[str, tuple[int, int, Preprocess]] = {
    "640x480 to 256, bilinear": (640, 480, Preprocess((256, 256), resize_to=256)),
    "640x480 to 256 to 224, bicubic": (
        640,
        480,
        Preprocess((224, 224), resize_to=256, **BICUBIC, **IMAGENET),  # type: ignore[arg-type]
    ),
    "500x375 squashed to 384, bicubic": (
        500,
        375,
        Preprocess((384, 384), resize="squash", **BICUBIC, **IMAGENET),  # type: ignore[arg-type]
    ),
    "1080x1920 to 224, bilinear": (1080, 1920, Preprocess((224, 224), resize_to=224)),
    "4000x3000 to 224, bilinear": (4000, 3000, Preprocess((224, 224), resize_to=224)),
    "4000x3000 to 256 to 224, bicubic": (
        4000,
        3000,
        Preprocess((224, 224), resize_to=256, **BICUBIC, **IMAGENET),  # type: ignore[arg-type]
    ),
    "224x224 to 256, bilinear": (224, 224, Preprocess((256, 256), resize_to=256)),
    "28x28 to 56, bilinear, grey": (
        28,
        28,
        Preprocess((56, 56), resize_to=56, **GREY),  # type: ignore[arg-type]
    ),
}
OURS, OURS_IMAGE, PEER, PEER_BOX = "vitlet", "vitlet, image", "Pillow", "Pillow, box"


def picture(width: int, height: int, mode: str) -> Image.Image:
    """A smooth picture with some noise, as photographs are."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + c) + np.cos(y / (11 + c)) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    rgb = np.clip(128 + 50 * np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def ours(array: NDArray[np.uint8], spec: Preprocess) -> NDArray[np.float32]:
    resized, window = geometry(array.shape[0], array.shape[1], spec)
    return resize_normalize(
        array, resized, window, spec.mean, spec.std, interpolation=spec.interpolation
    )


def ours_from_image(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    result: NDArray[np.float32] = preprocess(image, spec)[0]
    return result


def normalized(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    data = np.asarray(image).reshape(*spec.size, spec.channels).transpose(2, 0, 1)
    result: NDArray[np.float32] = data.astype(np.float32, order="C")
    result /= np.float32(255)
    result -= np.array(spec.mean, np.float32)[:, None, None]
    result /= np.array(spec.std, np.float32)[:, None, None]
    return result


def by_pillow(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    (height, width), (top, left, rows, columns) = geometry(image.height, image.width, spec)
    resized = image.resize((width, height), Image.Resampling[spec.interpolation.upper()])
    return normalized(resized.crop((left, top, left + columns, top + rows)), spec)


def by_pillow_box(image: Image.Image, spec: Preprocess) -> NDArray[np.float32]:
    (height, width), (top, left, rows, columns) = geometry(image.height, image.width, spec)
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
    kind = Image.Resampling[spec.interpolation.upper()]
    return normalized(image.resize((columns, rows), kind, box=box), spec)


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


def measure(ways: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Time every way in turn until `seconds` have passed, and at least nine times."""
    for call in ways.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[OURS]) < 9:
        for name, call in ways.items():
            times[name].append(seconds_of(call))
    return times


def ratio(times: dict[str, list[float]], peer: str, mine: str) -> float:
    pairs = zip(times[peer], times[mine], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)


def run_case(width: int, height: int, spec: Preprocess, seconds: float) -> dict[str, Any]:
    image = picture(width, height, spec.mode)
    array = np.asarray(image).reshape(height, width, spec.channels)
    expected = by_pillow(image, spec)
    np.testing.assert_array_equal(ours(array, spec), expected)
    np.testing.assert_array_equal(ours_from_image(image, spec), expected)
    ways: dict[str, Callable[[], Any]] = {
        OURS: partial(ours, array, spec),
        PEER: partial(by_pillow, image, spec),
        OURS_IMAGE: partial(ours_from_image, image, spec),
        PEER_BOX: partial(by_pillow_box, image, spec),
    }
    times = measure(ways, seconds)
    return {
        "milliseconds": {name: 1e3 * statistics.median(t) for name, t in times.items()},
        "rounds": len(times[OURS]),
        "speedup over Pillow": ratio(times, PEER, OURS),
        "speedup over Pillow, box": ratio(times, PEER_BOX, OURS),
        "speedup over Pillow, from an image": ratio(times, PEER, OURS_IMAGE),
        "speedup over Pillow, box, from an image": ratio(times, PEER_BOX, OURS_IMAGE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="per case")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results = {}
    print(f"{'':34}  {OURS:>8} {OURS_IMAGE:>14} {PEER:>8} {PEER_BOX:>12}   x Pillow   x box")
    for name, (width, height, spec) in CASES.items():
        row = run_case(width, height, spec, args.seconds)
        results[name] = row
        ms = row["milliseconds"]
        print(
            f"{name:34}  {ms[OURS]:8.3f} {ms[OURS_IMAGE]:14.3f} {ms[PEER]:8.3f} "
            f"{ms[PEER_BOX]:12.3f} {row['speedup over Pillow']:10.1f} "
            f"{row['speedup over Pillow, box']:7.1f}"
        )
    if args.json:
        about = {
            "isa": _C.active_isa(),
            "machine": platform.machine(),
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "threads": 1,
        }
        args.json.write_text(json.dumps({"about": about, "cases": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
