"""Reads a shared library that TVM made: an ELF file, looked at without loading it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from vitlet.apps.readers.contents import Contents
from vitlet.errors import CorruptInputError

_MACHINES = {3: "i386", 40: "armv7", 62: "x86_64", 183: "aarch64", 243: "riscv"}
_DYNAMIC, _DYNSYM = 6, 11  # section types
_NEEDED = 1  # tag of a dynamic entry
_PREFIXES = ("__tvm_ffi_", "__tvm_")  # of the symbols that TVM exports, newest first
_MACH_O = (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    entry: int


def read(path: Path) -> Contents:
    """Return the machine, the libraries needed, and the functions that TVM exports.

    Raises:
        CorruptInputError: not a shared library, or a truncated one.
    """
    data = path.read_bytes()
    contents = Contents(path, "ELF shared library", len(data))
    if data[:4] in _MACH_O:
        contents.format = "Mach-O shared library"
        contents.note("Mach-O libraries are not looked into")
        return contents
    if data[:4] != b"\x7fELF":
        raise CorruptInputError(f"{path} is not a shared library: it starts with {data[:4]!r}")
    try:
        machine, sections = _sections(data)
        symbols = [
            name for s in sections if s.kind == _DYNSYM for name in _names(data, sections, s)
        ]
        needed = [
            name for s in sections if s.kind == _DYNAMIC for name in _libraries(data, sections, s)
        ]
    except (struct.error, IndexError, ValueError) as error:
        raise CorruptInputError(f"{path} is a truncated or damaged library: {error}") from None
    functions = sorted({_bare(name) for name in symbols if name.startswith(_PREFIXES)} - {""})
    contents.facts = {
        "machine": _MACHINES.get(machine, f"ELF machine {machine}"),
        "needs": ", ".join(needed) or "nothing",
        "functions": len(functions),
    }
    contents.ops = dict.fromkeys(functions, 1)
    if not functions:
        contents.problem("no TVM function is exported: this is not a compiled model")
    return contents


def _sections(data: bytes) -> tuple[int, list[_Section]]:
    wide = data[4] == 2  # 64 bit
    end = "<" if data[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{end}H", data, 18)
    if wide:
        (table,) = struct.unpack_from(f"{end}Q", data, 40)
        step, count = struct.unpack_from(f"{end}HH", data, 58)
    else:
        (table,) = struct.unpack_from(f"{end}I", data, 32)
        step, count = struct.unpack_from(f"{end}HH", data, 46)
    found = []
    for number in range(count):
        layout = f"{end}IIQQQQIIQQ" if wide else f"{end}IIIIIIIIII"
        row = struct.unpack_from(layout, data, table + number * step)
        section = _Section(row[1], row[4], row[5], row[6], row[9])
        if section.kind != 8 and section.offset + section.size > len(data):  # 8 holds no bytes
            raise ValueError(f"section {number} ends after the file does")
        found.append(section)
    if not found:
        raise ValueError("it has no sections")
    return machine, found


def _text(data: bytes, table: _Section, offset: int) -> str:
    begin = table.offset + offset
    return data[begin : data.index(b"\0", begin)].decode("utf-8", "replace")


def _names(data: bytes, sections: list[_Section], table: _Section) -> list[str]:
    """Return the names of the symbols that the library defines."""
    end = "<" if data[5] == 1 else ">"
    names = []
    for at in range(table.offset, table.offset + table.size, table.entry or 24):
        (name,) = struct.unpack_from(f"{end}I", data, at)
        (section,) = struct.unpack_from(f"{end}H", data, at + (6 if data[4] == 2 else 14))
        if section:  # 0: defined elsewhere
            names.append(_text(data, sections[table.link], name))
    return names


def _libraries(data: bytes, sections: list[_Section], table: _Section) -> list[str]:
    layout = f"{'<' if data[5] == 1 else '>'}{'QQ' if data[4] == 2 else 'II'}"
    step = struct.calcsize(layout)
    rows = [
        struct.unpack_from(layout, data, at)
        for at in range(table.offset, table.offset + table.size, step)
    ]
    return [_text(data, sections[table.link], value) for tag, value in rows if tag == _NEEDED]


def _bare(symbol: str) -> str:
    for prefix in _PREFIXES:
        symbol = symbol.removeprefix(prefix)
    return symbol.lstrip("_")
