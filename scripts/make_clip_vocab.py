"""Write python/vitlet/data/assets/clip_merges.npz, the byte-pair merges of CLIP's vocabulary.

OpenAI published the list (bpe_simple_vocab_16e6.txt, MIT licence) with CLIP. The PyPI package
instant-clip-tokenizer carries it, as plain text, inside its extension module; this script takes it
from there:

    pip install instant-clip-tokenizer     # Python 3.9 to 3.12
    python scripts/make_clip_vocab.py

Merges are stored as pairs of token ids, not as strings: token 512 + i is the pair in row i, and a
pair's own ids are below that. The words come back by following the pairs down to bytes.
"""

from __future__ import annotations

import importlib.util
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np

HEADER = b"#version: 0.2\n"
MERGES = 49_152 - 256 - 2  # of the published list, CLIP uses so many
OUT = Path(__file__).parents[1] / "python/vitlet/data/assets/clip_merges.npz"


def merge_lines() -> list[str]:
    """Return the lines "first second", most frequent pair first."""
    spec = importlib.util.find_spec("instant_clip_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install instant-clip-tokenizer first (see this script's docstring)")
    for library in Path(spec.submodule_search_locations[0]).glob("instant_clip_tokenizer*.*"):
        data = library.read_bytes()
        start = data.find(HEADER)
        if start >= 0:
            lines = data[start + len(HEADER) :].split(b"\n", MERGES)[:MERGES]
            return [line.decode() for line in lines]
    raise SystemExit("instant-clip-tokenizer no longer carries the list as plain text")


def byte_symbols() -> list[str]:
    """Return the character that stands for each byte, in token order (Radford et al., GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def main() -> None:
    """Check the list and write the asset."""
    symbols = byte_symbols()
    ids = {s: i for i, s in enumerate([*symbols, *(s + "</w>" for s in symbols)])}
    pairs = []
    for line in merge_lines():
        first, second = line.split(" ")
        pairs.append((ids[first], ids[second]))
        if first + second in ids:
            raise SystemExit(f"{first + second!r} is made by two merges")
        ids[first + second] = len(ids)
    member = BytesIO()
    np.save(member, np.array(pairs, dtype="<u2"), allow_pickle=False)
    with zipfile.ZipFile(OUT, "w") as archive:  # with a fixed date, so that the file is too
        info = zipfile.ZipInfo("merges.npy", (1980, 1, 1, 0, 0, 0))
        archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    print(f"{OUT.name}: {len(pairs)} merges, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
