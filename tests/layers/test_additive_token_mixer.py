from __future__ import annotations

import pytest
import torch
from made_up import fill, images, relative, relative_difference
from torch import Tensor, nn
from torch.nn import functional as F

from vitlet.compress.reparameterize import reparameterize
from vitlet.layers.additive_token_mixer import AdditiveTokenMixer
from vitlet.layers.fold_sequential import fold_sequential
from vitlet.layers.local_perception import LocalPerception


def definition(mixer: AdditiveTokenMixer, x: Tensor) -> Tensor:
    """out = proj(dwc(gate(q) + gate(k)) * v), by the state dict's names."""
    p, dim = mixer.state_dict(), x.shape[1]

    def depthwise(name: str, t: Tensor) -> Tensor:
        return F.conv2d(t, p[f"{name}.weight"], p[f"{name}.bias"], padding=1, groups=dim)

    def gate(name: str, t: Tensor) -> Tensor:
        norm = f"{name}.0.block.1"
        s = depthwise(f"{name}.0.block.0", t) - p[f"{norm}.running_mean"][:, None, None]
        s = s / (p[f"{norm}.running_var"] + 1e-5).sqrt()[:, None, None]
        s = s * p[f"{norm}.weight"][:, None, None] + p[f"{norm}.bias"][:, None, None]
        t = (
            t
            * torch.einsum("bchw,c->bhw", s.relu(), p[f"{name}.0.block.3.weight"].flatten())[
                :, None
            ].sigmoid()
        )
        means = t.mean(dim=(2, 3))
        return t * (means @ p[f"{name}.1.block.1.weight"].flatten(1).T).sigmoid()[:, :, None, None]

    q, k, v = torch.einsum("oi,bihw->bohw", p["qkv.weight"].flatten(1), x).split(dim, dim=1)
    return depthwise("proj", depthwise("dwc", gate("oper_q", q) + gate("oper_k", k)) * v)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 7), (8, 3)])
def test_mixer_is_its_definition_before_and_after_the_merge(height: int, width: int) -> None:
    mixer = fill(AdditiveTokenMixer(12)).double()
    x = images("mixer", 2, 8, 12).double()[:, :, :height, :width]
    with torch.no_grad():
        want = definition(mixer, x)
        for got in (mixer(x), reparameterize(mixer)(x)):
            assert relative(got, want) < 1e-12
            assert relative_difference(got, want) < 1e-12


def test_merged_local_perception_is_the_same_function() -> None:
    block = fill(LocalPerception(8)).double()
    x = images("local", 2, 8, 8).double()
    merged = reparameterize(block)
    with torch.no_grad():
        assert relative(merged(x), block(x)) < 1e-12
    assert len(merged.network) == len(block.network) - 1


def test_fold_keeps_a_batch_norm_that_follows_no_convolution() -> None:
    layers = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)
    )
    layers, x = fill(layers), images("fold", 2, 8)
    folded = fold_sequential(layers)
    kinds = [type(layer).__name__ for layer in folded]
    assert kinds == ["BatchNorm2d", "Conv2d", "ReLU", "BatchNorm2d"]
    with torch.no_grad():
        assert relative(folded(x), layers(x)) < 1e-6
