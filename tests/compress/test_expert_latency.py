"""Times of mixtures' layers: measured, written, read, and taken as the coefficients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vitlet.compress.expert_latency import (
    ExpertTime,
    ExpertTimes,
    measure_times,
    read_times,
    write_times,
)
from vitlet.compress.shift_add import mixture_sizes, shift_add
from vitlet.errors import CorruptInputError, UsageError
from vitlet.layers.mixture_linear import MixtureLinear
from vitlet.models.deit import DeiT

TIMES = ExpertTimes(
    {(16, 64): ExpertTime(17, 3.0, 1.0), (64, 16): ExpertTime(17, 1.0, 4.0)}, 1, {"isa": "made up"}
)


@pytest.fixture(scope="module")
def model() -> DeiT:
    torch.manual_seed(0)
    return DeiT(dim=16, depth=2, heads=2, patch_size=2, img_size=8, num_classes=3, in_chans=1)


def test_sizes_are_those_of_the_layers_with_their_tokens(model: DeiT) -> None:
    x = torch.zeros(1, 1, 8, 8)
    block = [((16, 48), 17), ((16, 16), 17), ((16, 64), 17), ((64, 16), 17)]
    assert mixture_sizes(model, x) == 2 * block
    assert mixture_sizes(model, x, layers="mlp") == 2 * block[2:]
    mixed, _ = shift_add(model, linear="moe")
    assert mixture_sizes(mixed, x) == 2 * block  # a mixture counts once, its parts do not


def test_each_size_is_measured_with_the_most_tokens() -> None:
    found = measure_times([((8, 24), 2), ((8, 24), 5), ((24, 8), 3)], seconds=0.0)
    assert list(found.layers) == [(8, 24), (24, 8)]
    assert found.layers[8, 24].tokens == 5
    assert all(time.dense_us > 0 and time.shift_us > 0 for time in found.layers.values())
    with pytest.raises(UsageError, match="no linear layer"):
        measure_times([])


def test_a_mixture_takes_the_coefficients_of_its_size(model: DeiT, tmp_path: Path) -> None:
    write_times(TIMES, tmp_path / "t.json")
    read = read_times(tmp_path / "t.json")
    assert read == TIMES
    made, _ = shift_add(model, attention="unchanged", linear="moe", latency=read)
    mlp = made.blocks[1].mlp
    assert isinstance(mlp.fc1, MixtureLinear) and isinstance(mlp.fc2, MixtureLinear)
    assert mlp.fc1.wanted_shares == (0.25, 0.75) and mlp.fc2.wanted_shares == (0.8, 0.2)
    with pytest.raises(UsageError, match=r"no time of a layer 16x48 .*16x64, 64x16"):
        shift_add(model, attention="unchanged", linear="moe", layers="all", latency=read)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    good = TIMES.to_json()
    path = tmp_path / "t.json"
    for content in (
        [], {**good, "version": 2}, {**good, "layers": [{"in": 1}]},
        {**good, "layers": [{**good["layers"][0], "dense_us": 0.0}]},
    ):  # fmt: skip
        path.write_text(json.dumps(content))
        with pytest.raises(UsageError, match="vitlet bench --experts"):
            read_times(path)
    path.write_text("{")
    with pytest.raises(CorruptInputError, match="no JSON"):
        read_times(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_times(tmp_path / "absent.json")
