from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import describe, fill, images, keys, parity, relative, relative_difference

from vitlet.compress.reparameterize import reparameterize
from vitlet.errors import ShapeError, UsageError
from vitlet.models.deit import DeiT, deit
from vitlet.models.registry import model_info


def small(**changes: object) -> DeiT:
    config = {"dim": 24, "depth": 5, "heads": 3, "patch_size": 8, "img_size": 32, "num_classes": 7}
    return fill(deit(**{**config, **changes}))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_keys_and_shapes_are_upstreams(size: str) -> None:
    with torch.device("meta"):
        model = deit(**model_info(f"deit_{size}").config)
    assert describe(model) == keys(f"deit_{size}")


def test_blocks_before_the_first_token_cut_are_those_of_the_worked_example() -> None:
    # EViT has DeiT's weights and drops its first tokens in block 3.
    facts, _ = parity("evit_deit_tiny_k070_fuse")
    model = fill(deit(**model_info("deit_tiny").config))
    seen: dict[str, torch.Tensor] = {}
    for name in ("patch_embed", "blocks.0", "blocks.1", "blocks.2"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    with torch.no_grad():
        model(images("evit_tiny", 2, 224))
    for name, got in seen.items():
        want = facts["intermediates"][name]
        assert list(got.shape) == want["shape"]
        measured = [got.mean().item(), got.std(correction=0).item(), got.abs().max().item()]
        np.testing.assert_allclose(measured, want["mean_std_absmax"], rtol=1e-4, atol=1e-5)


def reference(model: DeiT, x: torch.Tensor) -> torch.Tensor:
    """Compute the logits in the words of the papers, from the state dict alone."""
    state, (b, dim) = model.state_dict(), (x.shape[0], model.pos_embed.shape[-1])
    heads = model.blocks[0].attn.heads

    def linear(name: str, t: torch.Tensor) -> torch.Tensor:
        return t @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, t: torch.Tensor) -> torch.Tensor:
        centred = t - t.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        scaled = centred / (variance + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    p = model.patch_size
    patches = x.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    tokens = patches @ state["patch_embed.proj.weight"].flatten(1).T
    tokens = tokens + state["patch_embed.proj.bias"]
    tokens = torch.cat([state["cls_token"].expand(b, 1, dim), tokens], 1) + state["pos_embed"]
    for i in range(len(model.blocks)):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", tokens))
        q, k, v = qkv.reshape(b, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / (dim // heads) ** 0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        tokens = tokens + linear(f"blocks.{i}.attn.proj", mixed)
        hidden = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", tokens))
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        tokens = tokens + linear(f"blocks.{i}.mlp.fc2", hidden)
    return linear("head", norm("norm", tokens)[:, 0])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"img_size": 28, "patch_size": 4, "in_chans": 1, "heads": 4},
        {"dim": 10, "heads": 1, "depth": 1, "mlp_ratio": 2.5},
    ],
)
def test_logits_are_those_of_the_papers_formulas(config: dict[str, object]) -> None:
    model = small(**config).double()
    x = images("formula", 2, model.img_size, model.patch_embed.proj.in_channels).double()
    with torch.no_grad():
        got, want = model(x), reference(model, x)
        assert relative(got, want) < 1e-12
        assert relative_difference(got, want) < 1e-12
        assert relative(reparameterize(model)(x), want) < 1e-12


def test_forward_features_feeds_the_head() -> None:
    model, x = small(), images("features", 2, 32)
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert tokens.shape == (2, 17, 24)
        assert relative(model.head(tokens[:, 0]), model(x)) < 1e-6


def test_merge_folds_the_scale_and_keeps_the_output() -> None:
    model, x = small(), images("merge", 2, 32)
    merged = reparameterize(model)
    assert {block.attn.scale for block in merged.blocks} == {1.0}
    assert {block.attn.scale for block in model.blocks} == {8**-0.5}
    with torch.no_grad():
        assert relative(merged(x), model(x)) < 1e-5
        assert torch.equal(reparameterize(merged)(x), merged(x))


@pytest.mark.parametrize(("depth", "after"), [(12, (3, 6, 9, 12)), (6, (1, 3, 4, 6))])
def test_features_only_gives_maps_of_evenly_spaced_blocks(
    depth: int, after: tuple[int, ...]
) -> None:
    model, x = small(depth=depth, features_only=True), images("maps", 2, 32)
    tokens = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, output: tokens.append(output))
    with torch.no_grad():
        maps = model(x)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 4)] * 4
    for got, index in zip(maps, after, strict=True):
        # Token 1 + 4 * row + column is the patch at (row, column).
        assert torch.equal(got[:, :, 2, 1], tokens[index - 1][:, 1 + 4 * 2 + 1])


def test_another_image_size_is_refused_with_what_to_do() -> None:
    with pytest.raises(ShapeError, match=r"expected images of 32x32, got 40x40.*img_size="):
        small()(images("size", 1, 40))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 5}, "heads must divide dim"),
        ({"img_size": 30}, "multiple of patch_size"),
        ({"depth": 3, "features_only": True}, "4 blocks or more"),
    ],
)
def test_impossible_sizes_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        small(**config)
