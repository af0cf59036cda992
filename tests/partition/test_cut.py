"""Cutting a ViT: what a mask of zeros computes, with smaller tensors and no mask."""

from __future__ import annotations

import pytest
import torch
from made_up import fill
from torch import Tensor
from torch.nn import functional as F

from vitlet.errors import UsageError
from vitlet.models.deit import DeiT
from vitlet.partition.submodels.cut import Kept, build, cut, widths_of
from vitlet.partition.submodels.features import feature, logits
from vitlet.partition.submodels.gates import Gates, gated_logits


def vit(dim: int = 24, depth: int = 2, heads: int = 3, **config: int) -> DeiT:
    torch.manual_seed(0)
    given = {"patch_size": 4, "img_size": 8, "in_chans": 1, "num_classes": 5, **config}
    model = DeiT(dim=dim, depth=depth, heads=heads, **given).eval()
    fill(model)
    return model


def masked(model: DeiT, x: Tensor, kept: Kept) -> Tensor:
    """The definition: units that are not kept write zeros; a LayerNorm sees kept channels only."""
    stay = torch.zeros(model.pos_embed.shape[-1])
    stay[list(kept.channels or range(len(stay)))] = 1

    def norm(layer: torch.nn.LayerNorm, t: Tensor) -> Tensor:
        rows = t[..., stay.bool()]
        scaled = F.layer_norm(rows, rows.shape[-1:], eps=layer.eps)
        out = torch.zeros_like(t)
        out[..., stay.bool()] = scaled
        return (out * layer.weight + layer.bias) * stay

    t = model._tokens(x)
    for i, block in enumerate(model.blocks):
        b, n, _ = t.shape
        q, k, v = (
            block.attn.qkv(norm(block.norm1, t)).reshape(b, n, 3, block.attn.heads, -1).unbind(2)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        heads = torch.zeros(block.attn.heads)
        heads[list(kept.heads[i] if kept.heads else range(len(heads)))] = 1
        out = (out * heads[:, None, None]).transpose(1, 2).reshape(b, n, -1)
        t = t + block.attn.proj(out) * stay
        units = F.gelu(block.mlp.fc1(norm(block.norm2, t)))
        hidden = torch.zeros(units.shape[-1])
        hidden[list(kept.hidden[i] if kept.hidden else range(len(hidden)))] = 1
        t = t + block.mlp.fc2(units * hidden) * stay
    return model.head(norm(model.norm, t[:, 0]))


CASES = {
    "nothing": Kept(),
    "channels": Kept(channels=(0, 3, 5, 6, 23)),
    "one channel less": Kept(channels=tuple(range(23))),
    "heads": Kept(heads=((1,), (0, 2))),
    "hidden": Kept(hidden=(tuple(range(0, 96, 7)), (95,))),
    "all three": Kept(
        channels=tuple(range(1, 24, 2)), heads=((2,), (0, 1)), hidden=((4, 9, 50), (0, 1))
    ),
}


@pytest.mark.parametrize("kept", CASES.values(), ids=CASES)
def test_a_cut_model_computes_what_a_masked_one_does(kept: Kept) -> None:
    model, x = vit(), torch.randn(3, 1, 8, 8)
    small = cut(model, kept)
    with torch.no_grad():
        torch.testing.assert_close(small(x), masked(model, x, kept), rtol=1e-5, atol=1e-5)
    assert not list(small.buffers())


@pytest.mark.parametrize("kept", CASES.values(), ids=CASES)
def test_gates_of_zero_compute_what_a_cut_model_does(kept: Kept) -> None:
    model, x = vit(), torch.randn(3, 1, 8, 8)

    def gate(chosen: tuple[int, ...] | None, size: int) -> Tensor:
        row = torch.zeros(1, size)
        row[0, list(chosen if chosen is not None else range(size))] = 1
        return row

    gates = Gates(
        gate(kept.channels, 24),
        tuple(gate(kept.heads[i] if kept.heads else None, 3) for i in range(2)),
        tuple(gate(kept.hidden[i] if kept.hidden else None, 96) for i in range(2)),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            gated_logits(model, x, gates), cut(model, kept)(x), rtol=1e-5, atol=1e-5
        )


def test_a_cut_model_has_the_shapes_it_was_cut_to() -> None:
    small = cut(vit(), CASES["all three"])
    widths = widths_of(small)
    assert (widths.dim, widths.head_dim) == (12, 8)
    assert (widths.heads, widths.hidden) == ((1, 2), (3, 2))
    assert small.blocks[1].attn.qkv.weight.shape == (3 * 2 * 8, 12)
    assert small.pos_embed.shape == (1, 5, 12)
    parameters = 12 * (16 + 1 + 1 + 5) + 2 * 12 + 5 * 13  # embedding, norm, head
    for heads, hidden in ((1, 3), (2, 2)):
        parameters += 4 * 12 + 24 * heads * 13 + 12 * (8 * heads + 1)
        parameters += hidden * 13 + 12 * (hidden + 1)
    assert sum(p.numel() for p in small.parameters()) == parameters


def test_cutting_leaves_its_argument_alone() -> None:
    model = vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = cut(model, Kept(channels=(0, 1)))
    for parameter in small.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_cut_model_can_be_cut_again() -> None:
    model, x = vit(), torch.randn(2, 1, 8, 8)
    twice = cut(
        cut(model, Kept(channels=tuple(range(12)))), Kept(channels=(3, 5), heads=((0,),) * 2)
    )
    once = cut(model, Kept(channels=(3, 5), heads=((0,),) * 2))
    torch.testing.assert_close(twice(x), once(x))


def test_an_untrained_model_takes_the_weights_of_a_cut_one() -> None:
    model, x = vit(), torch.randn(2, 1, 8, 8)
    small = cut(model, CASES["all three"])
    made = build(model, widths_of(small), 5).eval()
    made.load_state_dict(small.state_dict())
    assert torch.equal(made(x), small(x))


def test_a_merged_model_is_cut_with_its_own_scale() -> None:
    import vitlet

    model, x = vit(), torch.randn(2, 1, 8, 8)
    merged = vitlet.reparameterize(model)
    kept = CASES["all three"]
    torch.testing.assert_close(cut(merged, kept)(x), cut(model, kept)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_feature_is_the_normalized_class_token(depth: int) -> None:
    model, x = vit(depth=depth), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            feature(model, x), model.forward_features(x)[:, 0], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(logits(model, x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kept",
    [Kept(channels=()), Kept(channels=(0, 0)), Kept(channels=(24,)), Kept(heads=((3,), (0,)))],
)
def test_units_that_are_not_there_are_refused(kept: Kept) -> None:
    with pytest.raises(UsageError, match="expected different indices"):
        cut(vit(), kept)


def test_other_models_are_refused() -> None:
    with pytest.raises(UsageError, match="plain ViT"):
        cut(torch.nn.Linear(2, 2), Kept())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="features_only"):
        widths_of(DeiT(dim=8, depth=4, heads=1, img_size=16, features_only=True))
