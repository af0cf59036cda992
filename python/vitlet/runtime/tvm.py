"""Runs a graph that TVM compiled into one shared library, without the TVM package itself.

`import tvm` loads the compiler: 260 MB of library, torch if it is installed, seconds. Running needs
the foreign-function package `tvm_ffi` and the small `libtvm_runtime` from the TVM wheel only,
and takes 60 ms.
"""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlet.errors import (
    CorruptInputError,
    MissingDependencyError,
    ShapeError,
    UsageError,
    VitletError,
)
from vitlet.runtime.elf import check_runs_here, read_record
from vitlet.runtime.engine import Arrays, check_feeds
from vitlet.runtime.manifest import Artifact
from vitlet.runtime.tvm_extern import register
from vitlet.runtime.tvm_weights import mapped_weights

ENTRY = "main"  # the function in the library that computes the graph
_CPU, _POOLED_ALLOCATOR = 1, 2  # of the virtual machine's `vm_initialization`
_ALIGNMENT = 64  # bytes; TVM's kernels load vectors from addresses that are multiples of this
_LIBRARY = "libtvm_runtime.dylib" if sys.platform == "darwin" else "libtvm_runtime.so"

_load_lock = threading.Lock()
_runtime: list[ctypes.CDLL] = []
_pool = threading.local()  # TVM keeps one thread pool per calling thread


class TvmEngine:
    """One compiled graph in TVM's virtual machine on the CPU.

    Args:
        path: the `.tvm.so` file.
        artifact: its entry in the manifest, to compare with the file; None for a bare file.
        threads: threads to compute with.

    Raises:
        MissingDependencyError: apache-tvm is not installed.
        CorruptInputError: not a library that `vitlet export` made, or damaged.
        UnsupportedError: compiled for another processor.
    """

    name = "tvm"

    def __init__(
        self, path: str | os.PathLike[str], artifact: Artifact | None = None, threads: int = 1
    ) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.path = Path(path)
        self.artifact = artifact
        self.threads = threads
        self.record = read_record(self.path)
        check_runs_here(self.path, self.record)
        self.inputs, self.outputs = self.record.inputs, self.record.outputs
        self._ffi = load_runtime()
        self.version = importlib.metadata.version("apache-tvm")
        self._lock = threading.Lock()
        try:
            self._library, weights = _open_library(self._ffi, self.path)
            self._weights = [self._ffi.from_dlpack(array) for array in weights]
            self._machine = self._library["vm_load_executable"]()
            self._machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
            self._main = self._machine[ENTRY]
        except Exception as error:  # tvm_ffi maps C++ errors onto many builtin classes
            raise CorruptInputError(
                f"TVM {self.version} cannot load {self.path}: {_one_line(error)}"
            ) from error

    def run(self, feeds: Arrays) -> Arrays:
        """Compute every output.

        Args:
            feeds: input name -> array, of exactly the dtype and shape in `inputs`.

        Raises:
            ShapeError: a name, dtype or shape is not the one asked for.
        """
        check_feeds(feeds, self.inputs)
        with self._lock:  # the virtual machine keeps its state between instructions
            return self._call(feeds)

    def run_traced(self, feeds: Arrays) -> tuple[Arrays, list[tuple[str, NDArray[Any]]]]:
        """Compute every output, and record what each compiled kernel wrote.

        Returns:
            The outputs as `run` gives them, and (kernel name, array) for every array that a kernel
            wrote, in the order of the calls. A kernel that is called twice comes twice.
        """
        check_feeds(feeds, self.inputs)
        calls: list[tuple[str, NDArray[Any]]] = []
        fresh: set[int] = set()  # tensors that were allocated and not yet written
        tensor_type = self._ffi.Tensor

        def watch(_function: Any, symbol: str, before: bool, result: Any, *args: Any) -> int:
            if before:
                return 0
            if symbol == "vm.builtin.alloc_tensor":
                fresh.add(result.__chandle__())
            elif not symbol.startswith("vm."):
                # A kernel writes into tensors that were allocated for it: they come last.
                for arg in args:
                    if isinstance(arg, tensor_type) and arg.__chandle__() in fresh:
                        fresh.discard(arg.__chandle__())
                        calls.append((symbol, np.from_dlpack(arg).copy()))
            return 0

        with self._lock:
            self._machine["set_instrument"](self._ffi.convert(watch))
            try:
                outputs = self._call(feeds)
            finally:
                self._machine["set_instrument"](None)
        return outputs, calls

    def _call(self, feeds: Arrays) -> Arrays:
        _use_threads(self._ffi, self.threads)
        tensors = [self._ffi.from_dlpack(_aligned(feeds[spec.name])) for spec in self.inputs]
        try:
            result = self._main(*tensors, *self._weights)
        except Exception as error:
            raise VitletError(f"TVM failed to run {self.path}: {_one_line(error)}") from error
        values = [result] if isinstance(result, self._ffi.Tensor) else list(result)
        # Copies: the virtual machine may use its memory again for the next call.
        arrays = [np.from_dlpack(value).copy() for value in values]
        if len(arrays) != len(self.outputs):
            raise ShapeError(f"{self.path.name} gave {len(arrays)} outputs, its record says other")
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}


def load_runtime() -> ModuleType:
    """Load TVM's runtime library once and return the `tvm_ffi` module; never imports torch.

    Raises:
        MissingDependencyError: apache-tvm is not installed.
    """
    with _load_lock:
        ffi = _import_ffi()
        if not _runtime:
            # By default TVM pins the calling thread to the first core, for good.
            os.environ.setdefault("TVM_BIND_THREADS", "0")
            # Global symbols: the compiled graph finds its kernels' helpers by name.
            _runtime.append(ctypes.CDLL(str(_library_path()), ctypes.RTLD_GLOBAL))
            register(ffi, lambda: int(getattr(_pool, "threads", 1)))
        return ffi


def _open_library(ffi: ModuleType, path: Path) -> tuple[Any, list[NDArray[Any]]]:
    """Load a library under a name of its own; return it and its weights, which lie in it.

    The system's loader remembers libraries by name: after a second export to the same place, in
    the same process, it would hand out the first one.
    """
    with tempfile.TemporaryDirectory(prefix="vitlet-") as folder:
        link = Path(folder) / "graph.so"
        link.symlink_to(path.resolve())
        # Not kept alive beyond its engine: a server that loads new versions must not grow.
        library = ffi.load_module(os.fspath(link), keep_module_alive=False)
        again = ctypes.CDLL(os.fspath(link))
        weights = mapped_weights(again)
        _ctypes.dlclose(again._handle)
        return library, weights


def _import_ffi() -> ModuleType:
    if importlib.util.find_spec("tvm_ffi") is None:
        raise _missing("tvm_ffi")
    with _without_torch():
        return importlib.import_module("tvm_ffi")


def _library_path() -> Path:
    folders = [Path(given)] if (given := os.environ.get("TVM_LIBRARY_PATH")) else []
    spec = importlib.util.find_spec("tvm")  # finds the package without running it
    if spec is not None and spec.submodule_search_locations:
        folders += [Path(place) / "lib" for place in spec.submodule_search_locations]
    for folder in folders:
        if (folder / _LIBRARY).is_file():
            return folder / _LIBRARY
    raise _missing(_LIBRARY)


def _missing(what: str) -> MissingDependencyError:
    return MissingDependencyError(
        f'{what} is needed to run a TVM artefact: pip install "vitlet[tvm]"'
    )


@contextmanager
def _without_torch() -> Iterator[None]:
    """Keep `tvm_ffi` from importing torch, for this thread only and only if it is not there yet.

    `tvm_ffi` imports torch when it can, to exchange tensors with it, which costs a second and
    200 MB that a session has no use for; it works as well without.
    """
    if "torch" in sys.modules or "tvm_ffi" in sys.modules:
        yield
        return
    finder = _NoTorch(threading.get_ident())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _NoTorch(MetaPathFinder):
    def __init__(self, thread: int) -> None:
        self._thread = thread

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if threading.get_ident() == self._thread and name.split(".")[0] == "torch":
            raise ModuleNotFoundError("not needed to run a TVM artefact", name="torch")


def _use_threads(ffi: ModuleType, threads: int) -> None:
    if getattr(_pool, "threads", None) != threads:
        # A pool is made once for each calling thread, and no larger ever than this says; without it
        # TVM takes half the processors, or what OpenMP is told.
        most = max(os.cpu_count() or 1, threads, int(os.environ.get("TVM_NUM_THREADS") or 1))
        os.environ["TVM_NUM_THREADS"] = str(most)
        big_cores_first = 1
        ffi.get_global_func("runtime.config_threadpool")(big_cores_first, threads)
        _pool.threads = threads


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array, or a copy, that is contiguous, writable and aligned as TVM wants it."""
    fits = array.flags.c_contiguous and array.flags.writeable
    if fits and array.ctypes.data % _ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    copy: NDArray[Any] = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _one_line(error: Exception) -> str:
    # TVM's messages bring a C++ backtrace; what went wrong is their last line.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
