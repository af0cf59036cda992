"""Facts about this machine and installation; imports nothing heavy and changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import vitlet
from vitlet.apps.units import size

# Package, lowest version, the extra that brings it: as in pyproject.toml (a test compares them).
PACKAGES = (
    ("numpy", "1.26", ""),
    ("onnxruntime", "1.20", "runtime"),
    ("pillow", "10", "runtime"),
    ("ftfy", "6", "runtime"),
    ("typer", "0.12", "runtime"),
    ("rich", "13", "runtime"),
    ("torch", "2.10", "torch"),
    ("safetensors", "0.4", "torch"),
    ("onnx", "1.17", "onnx"),
    ("onnxscript", "0.5", "onnx"),
    ("coremltools", "9.0", "coreml"),
    ("scikit-learn", "1.4", "coreml"),
    ("apache-tvm", "0.27", "tvm"),
    ("apache-tvm-ffi", "0.1.14.post0", "tvm"),
    ("matplotlib", "3.8", "report"),
    ("eclipse-zenoh", "1.10", "edge"),
    ("cryptography", "42", "edge"),
    ("prometheus-client", "0.20", "edge"),
    ("starlette", "0.40", "edge"),
    ("uvicorn", "0.30", "edge"),
    ("opencv-python-headless", "4.8", "camera"),
)
# What each verb needs of them, per target.
_NEEDS = {
    ("onnx", "export"): ("torch", "safetensors", "onnx", "onnxscript"),
    ("onnx", "verify"): ("onnxruntime",),
    ("onnx", "run"): ("onnxruntime", "pillow"),
    ("coreml", "export"): ("torch", "safetensors", "coremltools"),
    ("coreml", "verify"): ("coremltools",),
    ("coreml", "run"): (),
    ("tvm", "export"): ("torch", "safetensors", "apache-tvm", "apache-tvm-ffi"),
    ("tvm", "verify"): ("apache-tvm", "apache-tvm-ffi"),
    ("tvm", "run"): ("apache-tvm", "apache-tvm-ffi", "pillow"),
}
_DATASET = Path("/usr/share/datasets/fashion-mnist")


def vitlet_facts() -> dict[str, Any]:
    """Return versions, and the instruction sets that the compiled kernels can use here."""
    try:
        from vitlet import _C

        active, supported = _C.active_isa(), list(_C.supported_isas())
        kernels = f"{active} (of {', '.join(supported)})"
    except ImportError as error:
        active, supported, kernels = None, [], f"not built: {error}"
    return {
        "version": vitlet.__version__,
        "python": platform.python_version(),
        "path": str(Path(vitlet.__file__).parent),
        "kernels": kernels,
        "active_isa": active,
        "supported_isas": supported,
    }


def hardware() -> dict[str, Any]:
    """Return system, processor, threads this process may use, and memory."""
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    threads = len(may_use(0))
    try:
        memory = size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        memory = "unknown"
    return {
        "system": f"{_distribution()} ({platform.system()} {platform.machine()})",
        "cpu": _cpu_name(),
        "threads": threads,
        "memory": memory,
    }


def packages() -> list[dict[str, Any]]:
    """Return, per optional package, the version here, the one needed, and what is wrong."""
    found = []
    for name, lowest, extra in PACKAGES:
        version = _version(name)
        found.append(
            {
                "name": name,
                "version": version,
                "needs": f"=={lowest}" if name == "apache-tvm-ffi" else f">={lowest}",
                "extra": extra or "-",
                "problem": _problem(name, version, lowest),
            }
        )
    return found


def targets() -> list[dict[str, Any]]:
    """Return, per target, whether it can be exported, verified and run here, and why not."""
    found = []
    for target in ("onnx", "coreml", "tvm"):
        entry: dict[str, Any] = {"target": target, "fix": None}
        for verb in ("export", "verify", "run"):
            missing = [p for p in _NEEDS[target, verb] if _unusable(p)]
            why = f"needs {', '.join(missing)}" if missing else ""
            if target == "coreml" and verb == "run":
                why = "in an app on an Apple device; --engine coreml checks its numbers here"
            entry[verb] = {"here": not why, "why": why}
            if missing:
                entry["fix"] = f'pip install "vitlet[{target}]"'
        found.append(entry)
    return found


def compilers() -> list[dict[str, Any]]:
    """Return the C++ compilers that link TVM libraries, for this host and others."""
    wanted = {
        "host": ("g++", "c++", "clang++"),
        "aarch64": ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc"),
        "armv7": ("arm-linux-gnueabihf-g++", "arm-linux-gnueabihf-gcc"),
    }
    return [
        {"use": use, "found": next((n for n in names if shutil.which(n)), None)}
        for use, names in wanted.items()
    ]


def dataset() -> dict[str, Any]:
    """Return where Debian's Fashion-MNIST is; only training the demo models needs it."""
    there = (_DATASET / "t10k-images-idx3-ubyte.gz").is_file()
    fix = None if there else "apt install dataset-fashion-mnist (only to train the demo models)"
    return {"found": f"Fashion-MNIST in {_DATASET}" if there else None, "fix": fix}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lowest(name: str) -> str:
    return next(lowest for package, lowest, _ in PACKAGES if package == name)


def _unusable(name: str) -> bool:
    version = _version(name)
    return version is None or bool(_problem(name, version, _lowest(name)))


def _problem(name: str, version: str | None, lowest: str) -> str:
    if version is None:
        return ""
    if name == "apache-tvm-ffi":  # 0.1.15 crashes TVM 0.27
        return "" if version == lowest else f"must be exactly {lowest}"
    return "" if _numbers(version) >= _numbers(lowest) else f"too old: needs {lowest} or newer"


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")  # Linux; the line is missing on many ARM systems
    for line in facts.read_text().splitlines() if facts.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
