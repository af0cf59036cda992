"""The GPU kernels on a GPU: the processor's results, on any stream, in a graph."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vitlet.errors import ShapeError, UsageError
from vitlet.ops import cuda, pack_int8_weight, pack_shift_weight, shift_linear

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels_cuda.py"


def benchmark() -> ModuleType:
    """benchmarks/kernels_cuda.py: its problems are these tests' problems."""
    spec = importlib.util.spec_from_file_location("benchmark_of_cuda", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = benchmark()
REASON = BENCHMARK.unavailable()
needs_gpu = pytest.mark.skipif(bool(REASON), reason=f"needs a GPU and the CUDA build: {REASON}")


@needs_gpu
@pytest.mark.parametrize("m", [1, 2, 16, 17, 64, 131])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (13, 33), (192, 65), (770, 64)])
def test_linear_has_the_processors_bits(m: int, k: int, n: int) -> None:
    ways, expected = BENCHMARK.linear_ways(m, k, n)
    for name, want in expected.items():
        np.testing.assert_array_equal(ways[name]().cpu().numpy(), want)


@needs_gpu
@pytest.mark.parametrize(("h", "n", "d"), [(1, 1, 1), (2, 67, 33), (3, 129, 64), (1, 3136, 128)])
def test_attention_is_near_the_processors(h: int, n: int, d: int) -> None:
    ways, expected = BENCHMARK.attention_ways(h, n, d)
    for name, want in expected.items():
        assert BENCHMARK.error("attention", ways[name](), want) < 1e-5


@needs_gpu
@pytest.mark.parametrize(("c", "side"), [(1, 1), (17, 5), (48, 33), (112, 14), (220, 7)])
def test_mixer_is_near_the_processors(c: int, side: int) -> None:
    ways, expected = BENCHMARK.mixer_ways(c, side)
    for name, want in expected.items():
        assert BENCHMARK.error("mixer", ways[name](), want) < 2e-5


@needs_gpu
def test_calls_can_be_captured_and_replayed_on_another_stream() -> None:
    for ways, expected in (
        BENCHMARK.linear_ways(17, 64, 64),
        BENCHMARK.attention_ways(1, 300, 64),
        BENCHMARK.mixer_ways(17, 9),
    ):
        for name in expected:
            plain, graph = ways[name](), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                got = ways[name]()
            got.zero_()
            graph.replay()
            torch.cuda.synchronize()
            assert torch.equal(got, plain)


@needs_gpu
def test_memory_of_the_host_and_a_crooked_workspace_are_refused() -> None:
    class OnHost:
        def __init__(self, array: Any) -> None:
            self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3}

    x = np.ones((2, 8), np.float32)
    weight = cuda.DeviceLinearWeight.from_host(pack_int8_weight(np.ones((3, 8))), BENCHMARK.to_gpu)
    out = torch.empty(2, 3, device="cuda")
    room = torch.empty(1000, dtype=torch.uint8, device="cuda")
    with pytest.raises(UsageError, match="in a GPU's memory"):
        cuda.shift_linear(OnHost(x), weight, out=out, workspace=room, stream=0)
    with pytest.raises(UsageError, match="workspace aligned to 16 bytes"):
        cuda.shift_linear(BENCHMARK.to_gpu(x), weight, out=out, workspace=room[1:])
    with pytest.raises(ShapeError, match="with strides"):
        cuda.shift_linear(BENCHMARK.to_gpu(x.T.copy()).T, weight)


@needs_gpu
def test_a_misaligned_view_has_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((20, 64), dtype=np.float32)
    packed = pack_shift_weight(x[:5])
    weight = cuda.DeviceLinearWeight.from_host(packed, BENCHMARK.to_gpu)
    room = torch.empty(20 * 64 + 1, device="cuda")
    view = room[1:].view(20, 64)
    view.copy_(torch.from_numpy(x))
    got = cuda.shift_linear(view, weight).cpu().numpy()
    np.testing.assert_array_equal(got, shift_linear(x, packed))


@pytest.mark.skipif(not REASON, reason="has a GPU")
def test_the_benchmark_says_what_it_needs() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.startswith("needs an NVIDIA GPU and vitlet's CUDA kernels: ")
    assert result.stdout.endswith("Nothing was measured.\n")
