"""CLIP's text tokenizer: byte-level byte-pair encoding, in Python alone.

The vocabulary is OpenAI's (Radford et al., "Learning Transferable Visual Models From Natural
Language Supervision", 2021; MIT licence); cleaning is open_clip's: ftfy, HTML entities twice,
whitespace, lower case. Text of plain printable ASCII needs no package; other text needs ftfy, whose
repairs change what the model sees (it straightens quotes, for one).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vitlet._extras import require
from vitlet.errors import UsageError

START = 49406
END = 49407
CONTEXT_LENGTH = 77

__all__ = ["CONTEXT_LENGTH", "END", "START", "clean", "decode", "encode", "tokenize"]

_WORD_END = 256  # id of a byte at the end of a word = id of the byte + this
_FIRST_MERGE = 512
_SPECIAL = {"<start_of_text>": START, "<end_of_text>": END}
# Runs over a shadow of the text in which every letter is "a", every number "0" (see _shadow).
_WORDS = re.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
)
# open_clip's expression ignores case: U+017F, the long s, counts as "s" after an apostrophe, and
# U+0345, a mark whose capital is a letter, counts as neither and gets lost.
_CASE_QUIRKS = {"\u017f": "s", "\u0345": " "}
_NOT_PLAIN = re.compile(r"[^\t\n\r -~]|&#?[0-9A-Za-z]{1,24};")


def tokenize(texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH) -> NDArray[np.int64]:
    """Turn texts into token ids.

    Args:
        texts: one text or several.
        context_length: ids per text; a longer text is cut and still ends with the end token.

    Returns:
        int64 (n, context_length): start token, ids, end token, zeros.

    Raises:
        UsageError: something is not a string.
        MissingDependencyError: a text is not plain ASCII and ftfy is not installed.
    """
    if context_length < 2:
        raise UsageError(f"context_length must be at least 2, got {context_length}")
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Sequence):
        raise UsageError(f"expected a text or a sequence of texts, got {type(texts).__name__}")
    out = np.zeros((len(texts), context_length), dtype=np.int64)
    for row, text in zip(out, texts, strict=True):
        ids = [START, *encode(text, limit=context_length - 1), END]
        ids[context_length - 1 :] = [END] if len(ids) >= context_length else []
        row[: len(ids)] = ids
    return out


def encode(text: str, limit: int | None = None) -> list[int]:
    """Return the ids of one text, without start and end tokens.

    Args:
        text: any text; it is cleaned first.
        limit: stop after the first word that reaches this many ids.

    Raises:
        UsageError: `text` is not a string.
        MissingDependencyError: the text is not plain ASCII and ftfy is not installed.
    """
    cleaned = clean(text)
    ids: list[int] = []
    for match in _WORDS.finditer(_shadow(cleaned)):
        word = cleaned[match.start() : match.end()]
        if word in _SPECIAL:
            ids.append(_SPECIAL[word])
        else:
            ids.extend(_encode_word(word))
        if limit is not None and len(ids) >= limit:
            break
    return ids


def decode(ids: Sequence[int]) -> str:
    """Return the text of token ids; start and end tokens and the zeros after them are left out.

    Raises:
        UsageError: an id is outside the vocabulary.
    """
    words = bytearray()
    for token in map(int, ids):
        if token == END:
            break
        if token == START:
            continue
        if not 0 <= token < START:
            raise UsageError(f"token ids are 0 to {END}, got {token}")
        words += spellings()[token][0] + (b" " if spellings()[token][1] else b"")
    return words.decode("utf-8", errors="replace").strip()


def clean(text: str) -> str:
    """Return the text as the vocabulary expects it: repaired, unescaped, in lower case.

    Raises:
        UsageError: `text` is not a string.
        MissingDependencyError: the text is not plain ASCII and ftfy is not installed.
    """
    if not isinstance(text, str):
        raise UsageError(f"a text must be a string, got {type(text).__name__}")
    if _NOT_PLAIN.search(text):
        ftfy = require("ftfy", extra="runtime", why="clean text beyond plain ASCII")
        text = cast("str", ftfy.fix_text(text))
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


@cache
def byte_tokens() -> tuple[int, ...]:
    """Return the token id of each byte: printable Latin-1 first, then the others."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = printable + [b for b in range(256) if b not in set(printable)]
    return tuple(order.index(b) for b in range(256))


@cache
def merges() -> list[tuple[int, int]]:
    """Return the merges in order of rank: token 512 + i is the pair of tokens i."""
    asset = files("vitlet.data") / "assets" / "clip_merges.npz"
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return [(first, second) for first, second in archive["merges"].tolist()]


@cache
def spellings() -> list[tuple[bytes, bool]]:
    """Return, for each token but the last two, its bytes and whether it ends a word."""
    of_id = sorted(range(256), key=byte_tokens().__getitem__)
    found = [(bytes([b]), False) for b in of_id] + [(bytes([b]), True) for b in of_id]
    for first, second in merges():
        found.append((found[first][0] + found[second][0], found[second][1]))
    return found


@cache
def _ranks() -> dict[tuple[int, int], int]:
    return {pair: _FIRST_MERGE + i for i, pair in enumerate(merges())}


@lru_cache(maxsize=65_536)
def _encode_word(word: str) -> tuple[int, ...]:
    """Merge the pair of lowest rank, everywhere in the word, until no pair is known."""
    ids = [byte_tokens()[b] for b in word.encode("utf-8")]
    ids[-1] += _WORD_END
    ranks = _ranks()
    while len(ids) > 1:
        best = min(ranks.get(pair, START) for pair in pairwise(ids))
        if best == START:
            break
        first, second = merges()[best - _FIRST_MERGE]
        merged: list[int] = []
        i = 0
        while i < len(ids):
            if ids[i] == first and i + 1 < len(ids) and ids[i + 1] == second:
                merged.append(best)
                i += 2
            else:
                merged.append(ids[i])
                i += 1
        ids = merged
    return tuple(ids)


def _shadow(text: str) -> str:
    """Return the text with letters beyond ASCII as "a", numbers as "0", the rest as it is.

    Python's `re` knows no Unicode categories; over the shadow it needs none. Both texts have the
    same length, so a match's span is the same in both.
    """
    if text.isascii():
        return text
    return "".join(c if c.isascii() else _shadow_of(c) for c in text)


@lru_cache(maxsize=65_536)
def _shadow_of(character: str) -> str:
    if character in _CASE_QUIRKS:
        return _CASE_QUIRKS[character]
    kind = unicodedata.category(character)[0]
    return {"L": "a", "N": "0"}.get(kind, " " if character.isspace() else "\x00")
