"""Which operations of Core ML's program language the executor computes, as a page of docs."""

from __future__ import annotations

from typing import Any

from vitlet._extras import require
from vitlet.runtime.coreml.table import REFUSED, families

# Parts of the language that never reach a package, or are read before anything is computed.
_INSIDE = {
    "const": "read with the package",
    "_const_symbolic": "only inside the converter",
}
_HEAD = """# Core ML operations

`vitlet.runtime.CoreMLExecutor` computes these operations of Core ML's program language (MIL), from
iOS 15 to iOS 18. `scripts/make_coreml_ops.py` writes this page from the table of kernels and the
operations that coremltools knows; a test keeps it current. What is not here is refused by name when
a package is opened.

"""


def known_operations() -> dict[str, int]:
    """Return every operation of the language -> the first iOS that has it.

    Raises:
        MissingDependencyError: coremltools is not installed.
    """
    from vitlet.runtime.coreml.quiet import quiet_coremltools

    with quiet_coremltools():
        require("coremltools", extra="coreml", why="list Core ML's operations")
        from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

        registry: dict[str, Any] = SSAOpRegistry.core_ops
    # The one operation of a dialect that packages hold: the file's write_state.
    return {"coreml_update_state": 18} | {
        name: max(15, min(int(version.name.removeprefix("iOS")) for version in versions))
        for name, versions in registry.items()
    }


def missing() -> list[str]:
    """Return the operations that are neither computed, nor refused on purpose, nor internal."""
    return sorted(set(known_operations()) - set(families()) - set(REFUSED) - set(_INSIDE))


def table() -> str:
    """Return docs/coreml-ops.md."""
    known, homes = known_operations(), families()
    lines = ["| operation | since | computed in |", "| --- | --- | --- |"]
    lines += [
        f"| `{name}` | iOS {known[name]} | `kernels/{homes[name]}.py` |"
        for name in sorted(homes)
        if name in known
    ]
    lines += ["", "Refused:", "", "| operation | why |", "| --- | --- |"]
    lines += [f"| `{name}` | {REFUSED[name]} |" for name in sorted(REFUSED)]
    return _HEAD + "\n".join(lines) + "\n"
