"""A fast fuzz of the frame reader: mutants of real frames, half of them with a right checksum.

python tests/fuzz_frames.py --frames 1000000
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import time
import zlib
from collections import Counter

import numpy as np

from vitlet.partition.cluster.frame import (
    HEADER_BYTES,
    Body,
    Frame,
    FrameError,
    Kind,
    decode,
    encode,
)

INTERESTING = (0, 1, 2**7, 2**8 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def seeds() -> list[bytes]:
    """Frames of every kind, with and without payload."""
    bodies = [
        Body.of(np.arange(7, dtype=np.float16)),
        Body.of(np.zeros((1, 4, 4, 3), np.uint8)),
        Body.of(np.zeros((2, 0), np.float32)),
        Body.of_bytes(b"{}"),
    ]
    return [
        encode(Frame(kind, bytes(16), 1, 2, 3, device="pi-1"), body)
        for kind in Kind
        for body in bodies
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few changes: flipped bits, numbers at the edge, cuts, repeats; sometimes a new checksum."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        way = rng.randrange(5)
        place = rng.randrange(len(changed) or 1)
        if way == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif way == 1 and len(changed) > 4:
            place = min(place & ~3, len(changed) - 4)
            changed[place : place + 4] = struct.pack("<I", rng.choice(INTERESTING))
        elif way == 2:
            del changed[place:]
        elif way == 3:
            changed[place:place] = changed[place : place + rng.randint(1, 16)]
        else:
            changed += rng.randbytes(rng.randint(1, 8))
    if rng.random() < 0.5 and len(changed) >= HEADER_BYTES:
        crc = zlib.crc32(changed[: HEADER_BYTES - 4], zlib.crc32(changed[HEADER_BYTES:]))
        changed[HEADER_BYTES - 4 : HEADER_BYTES] = struct.pack("<I", crc)
    return bytes(changed)


def fuzz(*, seconds: float, frames: int, seed: int) -> Counter[str]:
    """Read mutants until one of the limits: how many were "read", or refused for which reason."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    originals = seeds()
    end = time.monotonic() + seconds
    for number in range(frames):
        if number % 1024 == 0 and time.monotonic() > end:
            break
        try:
            _, array = decode(mutate(rng.choice(originals), rng))
        except FrameError as error:
            counts[error.reason] += 1
        else:
            assert array.nbytes < 4096
            counts["read"] += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = fuzz(seconds=options.seconds, frames=options.frames, seed=options.seed)
    taken = time.perf_counter() - begin
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{found.total()} frames in {taken:.1f} s, memory grew by {grown} KiB: {dict(found)}")
