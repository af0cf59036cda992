"""The machines that TVM compiles for, by name.

A name stands for what LLVM needs to know: a triple, a processor, and how many cores it has. What is
not in the table is written out as TVM does: ``llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53``.
"""

from __future__ import annotations

import difflib
import platform
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitlet.errors import UnsupportedError, UsageError
from vitlet.runtime.elf import cpu_flags

TRIPLES = ("x86_64-linux-gnu", "aarch64-linux-gnu")
# LLVM's name of an instruction set -> its name in /proc/cpuinfo. Only what code generation
# can use without being asked to matters for "does it run there".
_CPUINFO = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt",
    "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2",
    "lzcnt": "abm", "movbe": "movbe", "gfni": "gfni", "avxvnni": "avx_vnni",
    "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512bw": "avx512bw", "avx512dq": "avx512dq",
    "avx512vl": "avx512vl", "avx512ifma": "avx512ifma", "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg", "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512fp16": "avx512_fp16",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "lse": "atomics",
}  # fmt: skip
_X86_LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")


@dataclass(frozen=True)
class Description:
    """What a name stands for: a triple, LLVM's name of the processor, features to add, cores."""

    triple: str | None = None
    cpu: str | None = None
    features: tuple[str, ...] = ()
    cores: int | None = None


_X86, _ARM = TRIPLES
MACHINES: Mapping[str, Description] = {
    "native": Description(),
    "raspberry-pi-5": Description(_ARM, "cortex-a76", cores=4),
    "raspberry-pi-4": Description(_ARM, "cortex-a72", cores=4),
    "raspberry-pi-3": Description(_ARM, "cortex-a53", cores=4),
    "x86-64-v2": Description(_X86, "x86-64-v2"),
    "x86-64-v3": Description(_X86, "x86-64-v3"),
    "x86-64-v4": Description(_X86, "x86-64-v4"),
    _X86: Description(_X86),
    _ARM: Description(_ARM),
}


@dataclass(frozen=True)
class Machine:
    """What to compile for.

    Attributes:
        triple: of the machine.
        cpu: LLVM's name of the processor.
        cpu_features: that it implies, as /proc/cpuinfo spells them.
        native: whether it is this machine's triple.
        name: short, for files: a name of the table, or the triple.
        features: switched on or off beyond the processor's, as LLVM writes them.
        cores: to share loops among; None if unknown.
    """

    triple: str
    cpu: str
    cpu_features: tuple[str, ...]
    native: bool
    name: str = ""
    features: tuple[str, ...] = ()
    cores: int | None = None

    def target(self) -> Any:
        """Return TVM's own description."""
        from tvm.target import Target

        return Target(self.options())

    def options(self) -> dict[str, Any]:
        """Return what TVM's description is made from."""
        return _llvm(self.triple, self.cpu, self.features, self.cores)


def describe(name: str) -> Description:
    """Return what a name of `MACHINES`, or an "llvm ..." string, stands for.

    Raises:
        UsageError: neither, or an option in the string that is not taken; has the nearest names.
    """
    if name in MACHINES:
        return MACHINES[name]
    words = shlex.split(name)
    if not words or words[0] != "llvm":
        near = difflib.get_close_matches(name, MACHINES, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}" if near else f"choose {', '.join(MACHINES)}"
        raise UsageError(
            f'unknown TVM target {name!r}: {hint}, or write "llvm -mtriple=... -mcpu=..."'
        )
    given: dict[str, str] = {}
    for word in words[1:]:
        key, _, value = word.lstrip("-").partition("=")
        if key not in ("mtriple", "mcpu", "mattr", "num-cores") or not value:
            raise UsageError(
                f"a TVM target takes -mtriple=, -mcpu=, -mattr= and -num-cores=, got {word!r}"
            )
        given[key] = value
    cores = given.get("num-cores")
    if cores is not None and not re.fullmatch("[1-9][0-9]{0,3}", cores):
        raise UsageError(f"-num-cores must be a number from 1, got {cores!r}")
    features = tuple(part for part in given.get("mattr", "").split(",") if part)
    if any(part[0] not in "+-" for part in features):
        raise UsageError(f"-mattr takes features such as +dotprod, got {given['mattr']!r}")
    return Description(
        given.get("mtriple"), given.get("mcpu"), features, int(cores) if cores else None
    )


def _llvm(
    triple: str, cpu: str, features: tuple[str, ...] = (), cores: int | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    if features:
        found["mattr"] = list(features)
    if cores:
        found["num-cores"] = cores
    return found


def find_machine(
    triple: str | None = None, cpu: str | None = None, *, target: str | None = None
) -> Machine:
    """Return what to compile for; see `vitlet.export.tvm.export_tvm`.

    Raises:
        UsageError: the target's name is unknown, or given beside a triple or a processor.
        UnsupportedError: this machine is none of `TRIPLES`, or LLVM does not know the processor.
    """
    from tvm.target import Target, codegen

    if target is not None and (triple, cpu) != (None, None):
        raise UsageError(f"target {target!r} names the machine: leave triple and cpu out")
    given = describe(target) if target is not None else Description(triple, cpu)
    cpu = given.cpu
    names = {"amd64": "x86_64", "arm64": "aarch64"}
    machine = names.get(platform.machine().lower(), platform.machine().lower())
    here = f"{machine}-linux-gnu"
    if given.triple is None and (platform.system() != "Linux" or here not in TRIPLES):
        raise UnsupportedError(
            f"TVM libraries are made for {', '.join(TRIPLES)}; this machine is {machine} "
            f"{platform.system()}: give one of them as the target"
        )
    found = given.triple or here
    if found not in TRIPLES:
        raise UnsupportedError(f"tvm does not compile for {found!r}: choose {', '.join(TRIPLES)}")
    native = found == here and platform.system() == "Linux"

    def features(name: str) -> tuple[str, ...]:
        listed = codegen.llvm_get_cpu_features(Target(_llvm(found, name, given.features)))
        return tuple(sorted({_CPUINFO[str(f)] for f in listed if str(f) in _CPUINFO}))

    if cpu is None and native:
        flags = cpu_flags()
        # A virtual machine may hide instruction sets that the processor's name implies.
        names_here = [str(codegen.llvm_get_system_cpu())]
        names_here += list(_X86_LEVELS) if machine == "x86_64" else ["generic"]
        cpu = next((name for name in names_here if set(features(name)) <= flags), names_here[-1])
    elif cpu is None:
        cpu = "x86-64-v2" if found.startswith("x86_64") else "generic"
    known = codegen.llvm_get_cpu_archlist(Target({"kind": "llvm", "mtriple": found}))
    if cpu not in [str(name) for name in known]:
        near = difflib.get_close_matches(cpu, [str(name) for name in known], n=2, cutoff=0.5)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise UnsupportedError(f"LLVM knows no processor {cpu!r} for {found}{hint}")
    label = target if target in MACHINES and target != "native" else found
    return Machine(found, cpu, features(cpu), native, str(label), given.features, given.cores)
