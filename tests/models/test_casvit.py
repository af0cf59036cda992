from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import (
    describe,
    fill,
    images,
    keys,
    parity,
    relative,
    relative_difference,
)

from vitlet.compress.reparameterize import reparameterize
from vitlet.errors import UsageError
from vitlet.models.casvit import CASViT, casvit
from vitlet.models.registry import model_info, with_input

SIZES = ("xs", "s", "m", "t")


@pytest.fixture(scope="module")
def xs() -> CASViT:
    return fill(casvit(**model_info("casvit_xs").config))


@pytest.fixture(scope="module")
def xs_merged(xs: CASViT) -> CASViT:
    return reparameterize(xs)


def small(**changes: object) -> CASViT:
    config = {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 40), "num_classes": 7, **changes}
    return fill(casvit(**config))


@pytest.mark.parametrize("distillation", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_keys_and_shapes_are_upstreams(size: str, distillation: bool) -> None:
    config = {**model_info(f"casvit_{size}").config, "distillation": distillation}
    with torch.device("meta"):
        model = casvit(**config)
    assert describe(model) == keys(f"rcvit_{size}" + ("" if distillation else "_nodist"))


def test_every_output_of_the_worked_example_is_met(xs: CASViT) -> None:
    _, want = parity("rcvit_xs")
    with torch.no_grad():
        x = images("rcvit_xs", 2, 224)
        pooled = xs.forward_features(x).mean(dim=(2, 3))
        assert xs.dist_head is not None
        got = {
            "logits": xs(x),
            "logits_384": xs(images("rcvit_xs:384", 2, 384)),
            "pooled": pooled,
            "head": xs.head(pooled),
            "dist_head": xs.dist_head(pooled),
        }
    assert set(got) == set(want)
    for name, value in got.items():
        assert relative(value, want[name]) < 1e-5, name
        assert relative_difference(value, want[name]) < 1e-4, name


def test_stage_maps_are_those_of_the_worked_example() -> None:
    facts, _ = parity("rcvit_xs")
    model = fill(casvit(**model_info("casvit_xs").config, features_only=True))
    with torch.no_grad():
        maps = model(images("rcvit_xs", 2, 224))
    assert len(maps) == 4
    for index, got in enumerate(maps):
        want = facts["intermediates"][f"network.{2 * index}"]
        assert list(got.shape) == want["shape"]
        measured = [got.mean().item(), got.std(correction=0).item(), got.abs().max().item()]
        np.testing.assert_allclose(measured, want["mean_std_absmax"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "size"), [("logits", 224), ("logits_384", 384)])
def test_merged_model_meets_the_worked_example(xs_merged: CASViT, case: str, size: int) -> None:
    _, want = parity("rcvit_xs")
    name = "rcvit_xs" if size == 224 else f"rcvit_xs:{size}"
    with torch.no_grad():
        got = xs_merged(images(name, 2, size))
    assert relative(got, want[case]) < 1e-5
    assert relative_difference(got, want[case]) < 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_merge_is_exact_and_leaves_no_batch_norm(size: str) -> None:
    model = fill(casvit(**model_info(f"casvit_{size}").config)).double()
    merged = reparameterize(model)
    x = images(f"merge:{size}", 2, 64).double()
    with torch.no_grad():
        want, got = model(x), merged(x)
    # In float64 nothing but a wrong merge is left to see.
    assert relative(got, want) < 1e-12
    assert relative_difference(got, want) < 1e-11
    left = [n for n, m in merged.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert left == []


def test_merge_makes_two_heads_one_linear_layer(xs: CASViT, xs_merged: CASViT) -> None:
    assert xs.dist_head is not None and xs_merged.dist_head is None
    assert isinstance(xs_merged.head, torch.nn.Linear)
    assert "BatchNorm2d" in {type(m).__name__ for m in xs.modules()}  # argument untouched


@pytest.mark.parametrize("features_only", [True, False])
def test_merging_twice_changes_nothing(features_only: bool) -> None:
    merged = reparameterize(small(features_only=features_only))
    again = reparameterize(merged)
    x = images("twice", 2, 64)
    with torch.no_grad():
        for got, want in zip(again(x), merged(x), strict=True):
            assert torch.equal(got, want)


def test_merged_stage_maps_equal_the_plain_ones() -> None:
    model = small(features_only=True)
    x = images("maps", 2, 64)
    with torch.no_grad():
        for got, want in zip(reparameterize(model)(x), model(x), strict=True):
            assert relative(got, want) < 1e-5


def test_training_mode_and_gradients_work() -> None:
    model = small(in_chans=1).train()
    model(images("train", 2, 32, 1)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("side", "last"), [(28, 1), (32, 1), (65, 3), (224, 7)])
def test_any_input_size_works(side: int, last: int) -> None:
    with torch.no_grad():
        assert small().forward_features(images("side", 1, side)).shape == (1, 40, last, last)


def test_number_of_stages_is_checked() -> None:
    with pytest.raises(UsageError, match="4 stages"):
        casvit(depths=(1, 1, 1), dims=(8, 8, 8))


@pytest.mark.parametrize(("size", "resize"), [(256, "shortest"), (384, "squash")])
def test_large_inputs_are_squashed_as_upstream_does(size: int, resize: str) -> None:
    pre = with_input(model_info("casvit_xs"), {"img_size": size}).preprocess
    assert (pre.size, pre.resize) == ((size, size), resize)
