"""Links TVM's object files into one shared library whose bytes depend on their content alone.

No build-id, no symbol names of temporary files, no path: the linker runs inside the folder and sees
relative names only. The record that `vitlet.runtime.elf` reads goes into a section of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlet.errors import MissingDependencyError, StorageError, VitletError
from vitlet.runtime.elf import RECORD_SCHEMA, SECTION
from vitlet.runtime.manifest import TensorSpec
from vitlet.runtime.tvm_weights import ALIGNMENT, INDEX_SYMBOL, SYMBOL

_TIMEOUT = 600  # seconds


def find_linker(triple: str, *, native: bool) -> str:
    """Return the C compiler that links for a triple.

    Raises:
        MissingDependencyError: there is none; the message names Debian's package.
    """
    prefix = triple.replace("-unknown-", "-")
    names = [f"{prefix}-g++", f"{prefix}-gcc"]
    if native:
        names = ["c++", "g++", "cc", "gcc", "clang", *names]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    package = "g++" if native else f"g++-{prefix.replace('_', '-')}"
    raise MissingDependencyError(
        f"a compiler is needed to link for {triple}, none of {', '.join(names)} is installed: "
        f"apt install {package}"
    )


def link(
    linker: str,
    objects: Sequence[str],
    folder: Path,
    output: Path,
    record: dict[str, Any],
    weights: tuple[bytes, bytes] = (b"", b""),
) -> None:
    """Link object files into a shared library with a record, and with weights.

    Args:
        linker: from `find_linker`.
        objects: names of object files in `folder`.
        folder: where the linker runs.
        output: the library to write.
        record: what `vitlet.runtime.elf` will read back.
        weights: their bytes and index, as `vitlet.runtime.tvm_weights` will find them.

    Raises:
        VitletError: the linker failed; the message has its last line.
        StorageError: the library could not be written, for want of space for example.
    """
    text = json.dumps(record, separators=(",", ":"), sort_keys=True)
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    # %progbits is what both the x86 and the ARM assemblers read.
    source = f'.section {SECTION},"",%progbits\n.ascii "{quoted}"\n'
    source += '.section .note.GNU-stack,"",%progbits\n'
    try:
        for name, content in zip((SYMBOL, INDEX_SYMBOL), weights, strict=True):
            (folder / f"{name}.bin").write_bytes(content)
            source += f'.section .rodata.{name},"a",%progbits\n.balign {ALIGNMENT}\n'
            source += f'.globl {name}\n{name}:\n.incbin "{name}.bin"\n'
        (folder / "record.s").write_text(source)
    except OSError as error:
        raise StorageError(f"cannot link {output.name}: {error.strerror or error}") from error
    command = [
        linker, "-shared", "-fPIC", "-o", "linked.so", *objects, "record.s",
        "-Wl,--build-id=none,-z,noexecstack,-z,relro,-z,now,--strip-all", "-lm",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise VitletError(f"{linker} did not finish in {_TIMEOUT} s") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        if "No space left" in done.stderr:
            raise StorageError(f"cannot link {output.name}: no space left in {folder}")
        raise VitletError(f"{linker} failed to link {output.name}: {lines[-1]}")
    part = output.with_name(f"{output.name}.part")
    try:
        # Never write into an old library in place: it may be loaded, by this very process.
        shutil.copyfile(folder / "linked.so", part)
        part.replace(output)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {output}: {error.strerror or error}") from error


def make_record(
    *,
    triple: str,
    cpu: str,
    cpu_features: Sequence[str],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> dict[str, Any]:
    """Return the record of a compiled graph, as `vitlet.runtime.elf` reads it."""

    def plain(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in specs]

    return {
        "schema": RECORD_SCHEMA,
        "triple": triple,
        "cpu": cpu,
        "cpu_features": list(cpu_features),
        "inputs": plain(inputs),
        "outputs": plain(outputs),
    }
