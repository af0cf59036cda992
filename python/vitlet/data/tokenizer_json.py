"""CLIP's tokenizer as a `tokenizer.json`, for apps in Swift, Kotlin, Rust and JavaScript.

The format is that of Hugging Face's `tokenizers`. It holds everything but the repairs that precede
it in `vitlet.data.tokenizer.clean`: ftfy and HTML entities. For text that needs neither, such as
plain ASCII without "&", the ids are the same.
"""

from __future__ import annotations

import json
from typing import Any

from vitlet.data.tokenizer import CONTEXT_LENGTH, END, START, byte_tokens, merges, spellings

__all__ = ["tokenizer_json"]

_START_TEXT = "<start_of_text>"
_END_TEXT = "<end_of_text>"
_PATTERN = r"'[s\x{017f}]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{0345}]+"
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}


def tokenizer_json(context_length: int = CONTEXT_LENGTH) -> str:
    """Return the text of a `tokenizer.json` that gives (context_length,) ids, zero-padded."""
    return json.dumps(_description(context_length), ensure_ascii=False, separators=(",", ":"))


def _description(context_length: int) -> dict[str, Any]:
    words = _words()
    vocabulary = {word: i for i, word in enumerate(words)}
    vocabulary |= {_START_TEXT: START, _END_TEXT: END}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": context_length,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": context_length},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": words[0],
        },
        "added_tokens": [_special(START, _START_TEXT), _special(END, _END_TEXT)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Strip", "strip_left": True, "strip_right": True},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _PATTERN},
                    "behavior": "Removed",
                    "invert": True,
                },
                _BYTE_LEVEL,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": _START_TEXT, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": _END_TEXT, "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {
                text: {"id": text, "ids": [token], "tokens": [text]}
                for text, token in ((_START_TEXT, START), (_END_TEXT, END))
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                _BYTE_LEVEL,
                {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _END_TEXT,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [[words[first], words[second]] for first, second in merges()],
        },
    }


def _special(token: int, text: str) -> dict[str, Any]:
    return {
        "id": token,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": True,
    }


def _words() -> list[str]:
    """Return the spelling of each token in the characters that stand for bytes."""
    # Bytes that are not printable stand behind Latin-1, in the order of their token ids.
    printable = 94 + 12 + 82
    character = [
        chr(byte) if token < printable else chr(256 + token - printable)
        for byte, token in enumerate(byte_tokens())
    ]
    return [
        "".join(character[byte] for byte in spelling) + ("</w>" if ends_word else "")
        for spelling, ends_word in spellings()
    ]
