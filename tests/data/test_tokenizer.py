from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import vitlet
from vitlet.data.tokenizer import END, START, clean, decode, encode, spellings, tokenize
from vitlet.data.tokenizer_json import tokenizer_json
from vitlet.errors import MissingDependencyError, UsageError

EXAMPLES = json.loads(
    (Path(__file__).parents[1] / "parity" / "clip_bpe_tokenizer.json").read_text(encoding="utf-8")
)


def random_texts(count: int) -> list[str]:
    """Texts from six alphabets: code, contractions, European, CJK, entities, all of Unicode."""
    assigned = [
        chr(c) for c in range(32, 0x1FFFF) if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")
    ]
    alphabets: list[Sequence[str]] = [
        [chr(c) for c in range(32, 127)],
        list("abcdefghij '   stdvremlT1029"),
        [chr(c) for c in range(0x20, 0x370)],
        [chr(c) for c in range(0x3000, 0x30FF)] + list("一二三四五 六"),
        ["&amp;", "&lt;", "&#39;", "&eacute;", " x", "amp;", "&", "<b>"],
        assigned,
    ]
    rng = random.Random(0)
    return [
        "".join(rng.choices(alphabets[i % len(alphabets)], k=rng.randint(0, 40)))
        for i in range(count)
    ]


@pytest.mark.parametrize("index", range(len(EXAMPLES["texts"])))
def test_ids_equal_open_clips(index: int) -> None:
    np.testing.assert_array_equal(tokenize(EXAMPLES["texts"][index])[0], EXAMPLES["ids"][index])


def test_is_the_public_name() -> None:
    assert vitlet.tokenize is tokenize


def test_a_batch_has_one_row_per_text() -> None:
    ids = tokenize(["a dog", "", "a photo of a dog"])
    assert ids.shape == (3, 77)
    assert ids.dtype == np.int64
    assert ids[1].tolist()[:3] == [START, END, 0]
    assert tokenize([]).shape == (0, 77)


@pytest.mark.parametrize("length", [2, 5, 77])
def test_a_long_text_is_cut_and_still_ends_with_the_end_token(length: int) -> None:
    row = tokenize("word " * 500, context_length=length)[0]
    assert row[0] == START
    assert row[-1] == END
    assert len(set(row[1:-1].tolist())) <= 1


def test_a_text_that_just_fits_is_not_cut() -> None:
    row = tokenize("word " * 75)[0]
    assert (row[1:76] == encode("word")[0]).all()
    assert row[76] == END


@pytest.mark.parametrize("texts", [3, None, b"a dog", [b"a dog"], ["a", 3], {"a": 1}])
def test_what_is_no_text_is_refused(texts: Any) -> None:
    with pytest.raises(UsageError, match="text"):
        tokenize(texts)


def test_half_a_surrogate_pair_counts_as_the_replacement_character() -> None:
    np.testing.assert_array_equal(tokenize("\ud83d"), tokenize("\ufffd"))


def test_a_context_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        tokenize("a", context_length=1)


def test_decode_gives_the_words_back() -> None:
    assert decode(tokenize("A photo of a café, 日本!")[0].tolist()) == "a photo of a café , 日本 !"
    with pytest.raises(UsageError, match="49409"):
        decode([49409])


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=300, deadline=None)
def test_ids_hold_every_character_but_spaces(text: str) -> None:
    assume("_of_text>" not in clean(text))
    ids = encode(text)
    assert all(0 <= token < START for token in ids)
    data = b"".join(spellings()[token][0] for token in ids)
    kept = "".join(clean(text).split()).replace("\u0345", "")
    assert data.decode("utf-8") == kept


@pytest.fixture
def no_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)  # makes `import ftfy` fail


@pytest.mark.usefixtures("no_ftfy")
@pytest.mark.parametrize("text", ["café", "don\u2019t", "a &eacute; b", "\x1b[1m", "a\x7f"])
def test_text_that_needs_repair_is_refused_without_ftfy(text: str) -> None:
    with pytest.raises(MissingDependencyError, match=r"vitlet\[runtime\]"):
        tokenize(text)


@pytest.mark.usefixtures("no_ftfy")
def test_plain_ascii_needs_no_ftfy() -> None:
    assert tokenize("A dog & a cat,\n\tR&B <b>!").shape == (1, 77)


def test_plain_ascii_is_what_ftfy_would_leave_alone() -> None:
    import ftfy

    from vitlet.data.tokenizer import _NOT_PLAIN

    for text in random_texts(3000):
        if not _NOT_PLAIN.search(text):
            assert ftfy.fix_text(text) == text


def test_ids_equal_instant_clip_tokenizers() -> None:
    instant = pytest.importorskip(
        "instant_clip_tokenizer", reason="it has no wheel for this Python or processor"
    )
    other = instant.Tokenizer()
    # It does not ignore case around U+017F and U+0345 as open_clip's expression does.
    texts = [text for text in random_texts(3000) if not {"\u017f", "\u0345"} & set(clean(text))]
    expected = other.tokenize_batch([clean(text) for text in texts], context_length=77)
    np.testing.assert_array_equal(tokenize(texts), expected)


def test_the_exported_file_gives_the_same_ids() -> None:
    exported = tokenizers.Tokenizer.from_str(tokenizer_json())
    for text in [*random_texts(3000), *EXAMPLES["texts"]]:
        assert exported.encode(clean(text)).ids == tokenize(text)[0].tolist(), text
    assert exported.decode(exported.encode("a photo of a café").ids[:7]) == "a photo of a café"


def test_the_exported_file_cleans_case_and_spaces_itself() -> None:
    exported = tokenizers.Tokenizer.from_str(tokenizer_json(context_length=16))
    text = "  A Photo\tof  a\nCAT "
    assert exported.encode(text).ids == tokenize(text, context_length=16)[0].tolist()
