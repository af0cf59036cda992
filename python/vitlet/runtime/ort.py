"""Runs a graph in ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitlet._extras import require
from vitlet.errors import CorruptInputError, UnsupportedError, UsageError
from vitlet.runtime.accelerate import ACCELERATE, calls_our_operators, usable_library, warn_once
from vitlet.runtime.engine import Arrays, check_feeds
from vitlet.runtime.manifest import Artifact, TensorSpec

_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}  # fmt: skip
Kernels = Literal["none", "library", "functions"]
_FATAL_ONLY = 4  # log level: what goes wrong comes back as an exception, not as lines on stderr


def session_options(runtime: Any, threads: int, library: Path | None) -> Any:
    """Return the options of every session: quiet, reproducible, operators one after the other.

    Args:
        runtime: the package onnxruntime.
        threads: inside an operator, of ONNX Runtime and of our kernels.
        library: `libvitlet_ort`, or None.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL_ONLY
    if library is not None:
        options.add_session_config_entry("vitlet.threads", str(threads))
        options.register_custom_ops_library(os.fspath(library))
    return options


class OrtEngine:
    """One ONNX graph in ONNX Runtime on the CPU.

    Args:
        path: the `.onnx` file.
        artifact: its entry in the manifest, for messages; None for a bare file.
        threads: threads inside an operator; operators run one after the other.
        accelerate: whether operators of ours may run in vitlet's kernels.

    Attributes:
        kernels: what runs the graph's operators of ours: "library" (vitlet's kernels), "functions"
            (their definitions in standard operators), or "none" where it has no such operator.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        CorruptInputError: the file is not an ONNX model, or is damaged.
        UnsupportedError: it needs an operator or opset that this ONNX Runtime does not have.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: str | os.PathLike[str],
        artifact: Artifact | None = None,
        threads: int = 1,
        accelerate: bool = True,
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        runtime = require("onnxruntime", extra="runtime", why="run an ONNX artefact")
        self.version: str = runtime.__version__
        self.path = Path(path)
        self.artifact = artifact
        if not self.path.is_file():
            raise CorruptInputError(f"{self.path} does not exist or is not a file")
        self._session = self._open(runtime, threads, accelerate)
        self.inputs = tuple(self._spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(self._spec(node) for node in self._session.get_outputs())
        self._run_options = runtime.RunOptions()
        self._run_options.log_severity_level = _FATAL_ONLY

    def _open(self, runtime: Any, threads: int, accelerate: bool) -> Any:
        self.kernels: Kernels = "none"
        library: Path | None = None
        if calls_our_operators(self.path):
            self.kernels = "functions"
            if accelerate:
                library, reason = usable_library()
                if library is None and ACCELERATE not in reason:
                    warn_once(reason)
        options = session_options(runtime, threads, library)
        if library is not None:
            self.kernels = "library"
        try:
            return runtime.InferenceSession(
                os.fspath(self.path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _readable(error, self.path) from error

    def run(self, feeds: Arrays) -> Arrays:
        """Compute every output.

        Args:
            feeds: input name -> array, of exactly the dtype and shape in `inputs`.

        Raises:
            ShapeError: a name, dtype or shape is not the one asked for.
            UnsupportedError: ONNX Runtime could not compute the graph for this input.
        """
        check_feeds(feeds, self.inputs)
        try:
            values = self._session.run(None, feeds, self._run_options)
        except Exception as error:
            raise _readable(error, self.path) from error
        return {spec.name: np.asarray(v) for spec, v in zip(self.outputs, values, strict=True)}

    def _spec(self, node: Any) -> TensorSpec:
        if node.type not in _DTYPES:
            raise UnsupportedError(f"{self.path.name}: {node.name!r} has the type {node.type}")
        sizes = [size if isinstance(size, int) else str(size or "any") for size in node.shape]
        return TensorSpec(node.name, _DTYPES[node.type], tuple(sizes))


def _readable(error: Exception, path: Path) -> Exception:
    """Turn an exception of ONNX Runtime into ours; its kinds are told apart by class name."""
    kind = type(error).__name__
    text = " ".join(str(error).split())[:400]
    if kind in ("InvalidProtobuf", "InvalidGraph", "NoModel", "NoSuchFile"):
        return CorruptInputError(f"{path} is not a sound ONNX model: {text}")
    if kind == "NotImplemented" or "is not a registered function/op" in text or "opset" in text:
        return UnsupportedError(f"ONNX Runtime cannot run {path}: {text}")
    if kind in ("Fail", "RuntimeException", "InvalidArgument", "EPFail"):
        return CorruptInputError(f"ONNX Runtime refuses {path}: {text}")
    return error
