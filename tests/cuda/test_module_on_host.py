"""vitlet.ops.cuda down to the kernels, with the processor in the GPU's place."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pybind11
import pytest

import vitlet
from vitlet import ops
from vitlet.errors import UsageError
from vitlet.ops import cuda
from vitlet.ops.additive_token_mixer import MixerGate, MixerWeights

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


def cuda_headers() -> Path | None:
    """Where nvcc's headers are, or those of the usual place."""
    homes = [Path("/usr/local/cuda")]
    if (nvcc := shutil.which("nvcc")) is not None:
        homes.insert(0, Path(nvcc).resolve().parents[1])
    folders = [home / "include" for home in homes]
    return next((f for f in folders if (f / "cuda_runtime_api.h").exists()), None)


HEADERS = cuda_headers()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        HEADERS is None or shutil.which("g++") is None, reason="needs g++ and CUDA's headers"
    ),
]


class HostArray:
    """A numpy array that claims to lie on a GPU."""

    def __init__(self, array: Any) -> None:
        self.array = np.ascontiguousarray(array)
        about = self.array.__array_interface__
        self.__cuda_array_interface__ = {key: about[key] for key in ("typestr", "shape", "data")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    library = tmp_path_factory.mktemp("cuda") / "_cuda.so"
    kernels = [
        CSRC / "kernels" / name for name in ("linear_weights.cpp", "token_mixer_weights.cpp")
    ]
    folders = [CSRC / "cuda", CSRC / "kernels", HERE]
    outside = [HEADERS, pybind11.get_include(), sysconfig.get_paths()["include"]]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    command += ["-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-o", str(library)]
    command += [f"-I{folder}" for folder in folders]
    command += [option for folder in outside for option in ("-isystem", str(folder))]
    sources = [CSRC / "cuda" / "module.cpp", HERE / "host_launchers.cpp", *kernels]
    result = subprocess.run(
        [*command, *map(str, sources)], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    spec = importlib.util.spec_from_file_location("vitlet._cuda", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def extension(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vitlet._cuda", built)
    monkeypatch.setattr(vitlet, "_cuda", built, raising=False)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def empty(*shape: int) -> HostArray:
    return HostArray(np.full(shape, np.nan, np.float32))


def room(size: int) -> HostArray:
    return HostArray(np.full(size, 255, np.uint8))


@pytest.mark.parametrize("m", [0, 1, 16, 17])
@pytest.mark.parametrize(("k", "n"), [(13, 33), (192, 65)])
def test_linear_has_the_bits_of_the_processors_kernel(m: int, k: int, n: int) -> None:
    x, bias, weight = normal(m, k), normal(n, seed=1), normal(n, k, seed=2)
    for packed in (
        ops.pack_shift_weight(weight),
        ops.pack_shift_weight(weight, wide=True),
        ops.pack_int8_weight(weight),
    ):
        run: Any = ops.int8_linear if isinstance(packed, ops.Int8Weight) else ops.shift_linear
        out = empty(m, n)
        got = cuda.shift_linear(
            HostArray(x),
            cuda.DeviceLinearWeight.from_host(packed, HostArray),
            HostArray(bias),
            activation="gelu",
            out=out,
            workspace=room(cuda.shift_linear_workspace(m, k)),
        )
        assert got is out
        np.testing.assert_array_equal(out.array, run(x, packed, bias, activation="gelu"))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("n", "dim", "values"), [(67, 65, 33), (300, 32, 32)])
def test_attention_is_near_the_processors_kernel(
    n: int, dim: int, values: int, signed: bool
) -> None:
    q, k = (ops.pack_bits(normal(2, 3, n, dim, seed=seed)) for seed in (1, 2))
    v, filters = normal(2, 3, n, values), normal(3, 9)
    for taps in (None, filters):
        out = empty(*v.shape)
        cuda.binary_linear_attention(
            *(HostArray(q.words), HostArray(k.words), HostArray(v), dim),
            signed=signed,
            taps=None if taps is None else HostArray(taps),
            out=out,
            workspace=room(cuda.binary_linear_attention_workspace(2, 3, n, dim, values)),
        )
        want = ops.binary_linear_attention(q, k, v, signed=signed, exact=True, taps=taps)
        np.testing.assert_allclose(out.array, want, rtol=0, atol=3e-6 * np.abs(want).max())


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_mixer_is_near_the_processors_kernel(layout: Any) -> None:
    c, h, w = 19, 6, 9
    gates = [MixerGate(normal(c, 3, 3), normal(c), normal(c), normal(c, c)) for _ in range(2)]
    weights = MixerWeights(
        *(normal(3 * c, c), normal(3 * c), *gates),
        *(normal(c, 3, 3), normal(c), normal(c, 3, 3), normal(c)),
    )
    x = normal(2, c, h, w) if layout == "nchw" else normal(2, h, w, c)
    out = empty(*x.shape)
    cuda.additive_token_mixer(
        HostArray(x),
        HostArray(weights.packed("fp32")),
        layout=layout,
        out=out,
        workspace=room(cuda.additive_token_mixer_workspace(2, c, h, w)),
    )
    want = ops.additive_token_mixer(x, weights, layout=layout)
    np.testing.assert_allclose(out.array, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_memory_that_a_kernel_cannot_use_is_refused() -> None:
    weight = cuda.DeviceLinearWeight.from_host(ops.pack_int8_weight(normal(3, 8)), HostArray)
    x, out, space = HostArray(normal(2, 8)), empty(2, 3), room(100)

    def moved(array: HostArray, address: int) -> HostArray:
        other = HostArray(array.array)
        other.__cuda_array_interface__["data"] = (address, False)
        return other

    def run(**changed: Any) -> None:
        given = {"x": x, "out": out, "workspace": space} | changed
        cuda.shift_linear(given.pop("x"), weight, **given)

    with pytest.raises(UsageError, match=r"expected x in a GPU's memory, got memory of the host"):
        run(x=moved(x, 64))
    with pytest.raises(UsageError, match=r"expected all arrays on one GPU, got GPUs 0 and 1"):
        run(out=moved(out, 1 << 60))
    with pytest.raises(UsageError, match=r"expected workspace aligned to 16 bytes"):
        run(workspace=moved(space, 1 << 50 | 8))
    with pytest.raises(UsageError, match=r"\[shift_linear\] CUDA: an error"):
        run(stream=3)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="expected at most 131072 inputs, got 131073"):
        cuda.shift_linear_workspace(1, 131073)
    for bits in (0, 129):
        with pytest.raises(UsageError, match=f"expected 1 to 128 bits, got {bits}"):
            cuda.binary_linear_attention_workspace(1, 1, 1, bits, 1)
    with pytest.raises(UsageError, match="at most 268435456 pixels"):
        cuda.additive_token_mixer_workspace(1, 1, 1 << 15, 1 << 15)
    with pytest.raises(UsageError, match="expected non-negative sizes"):
        cuda.shift_linear_workspace(-1, 3)
