from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from made_up import describe, fill, images, keys, parity, relative, relative_difference, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import vitlet
from vitlet.errors import ShapeError, UsageError
from vitlet.models.build import meta_model
from vitlet.models.mobileclip import MobileCLIP, mobileclip
from vitlet.models.mobileclip_vit import AppleViT, TimmViT
from vitlet.models.registry import list_models, model_info

NAMES = [*list_models("mobileclip"), *list_models("mobileclip2")]
KEYS = {"mobileclip2_l14": "mobileclip2_l_14"}


@pytest.fixture(scope="module", params=["mobileclip_s0", "mobileclip2_s0"])
def example(request: pytest.FixtureRequest) -> Iterator[tuple[str, MobileCLIP]]:
    name = request.param
    with torch.inference_mode():
        yield name, fill(mobileclip(**model_info(name).config))


@pytest.mark.parametrize("name", NAMES)
def test_tensor_names_and_shapes_are_those_of_the_published_checkpoint(name: str) -> None:
    assert sorted(describe(meta_model(model_info(name)))) == sorted(keys(KEYS.get(name, name)))


@pytest.mark.parametrize("name", ["mobileclip_s0", "mobileclip_s1", "mobileclip_s2"])
def test_merged_form_has_the_names_that_upstream_saves(name: str) -> None:
    merged = meta_model(model_info(name), merged=True)
    assert sorted(describe(merged)) == sorted(keys(f"reparam_{name}"))


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_those_of_the_model(name: str) -> None:
    info = model_info(name)
    model = meta_model(info)
    assert sum(p.numel() for p in model.parameters()) == info.params
    out = model.image_tower(torch.empty(2, *info.input_shape, device="meta"))
    assert out.shape == (2, info.config.get("embed_dim", 512))
    with torch.device("meta"):
        merged = vitlet.reparameterize(model).image_tower
        # torch counts two operations for each multiply-accumulate of convolutions and products.
        with FlopCounterMode(display=False) as counter:
            merged(torch.empty(1, *info.input_shape))
    assert counter.get_total_flops() / 2e6 == pytest.approx(info.macs, abs=0.06)


def intermediates(name: str, model: MobileCLIP) -> dict[str, nn.Module]:
    """Return the modules whose outputs the worked example describes."""
    image = next(model.image_tower.children())
    text: Any = model.text_tower
    if name == "mobileclip_s0":
        named = {f"image.network.{i}": part for i, part in enumerate(image.network)}
        named |= {"image.patch_embed": image.patch_embed, "image.conv_exp": image.conv_exp}
        return named | {f"text.transformer.{i}": b for i, b in enumerate(text.transformer)}
    named = {f"image.stages.{i}": part for i, part in enumerate(image.stages)}
    named |= {"image.stem": image.stem, "image.final_conv": image.final_conv}
    blocks = text.transformer.resblocks
    return named | {f"text.resblocks.{i}": block for i, block in enumerate(blocks)}


def test_outputs_match_the_worked_example(example: tuple[str, MobileCLIP]) -> None:
    name, model = example
    facts, want = parity(name)
    seen: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _m, _i, out, key=key: seen.update({key: out}))
        for key, part in intermediates(name, model).items()
    ]
    image, text = images(name), tokens(name)
    assert np.array_equal(text, want["tokens"])
    for got, key in (
        (model.encode_image(image), "encode_image"),
        (model.encode_text(text), "encode_text"),
    ):
        assert relative(got, want[key]) < 1e-5
        assert relative_difference(got, want[key]) < 1e-4
    for hook in hooks:
        hook.remove()
    compared = set(seen) & set(facts["intermediates"])
    assert len(compared) >= 16
    for key in compared:
        about = facts["intermediates"][key]
        x = seen[key].double()
        # Upstream holds a text's map as (B, C, 1, 77) or as tokens; the numbers are the same.
        assert x.numel() == np.prod(about["shape"]), key
        got = [x.mean(), x.std(unbiased=False), x.abs().max()]
        assert [float(v) for v in got] == pytest.approx(about["mean_std_absmax"], rel=1e-3), key


def test_forward_gives_unit_rows_and_the_scale(example: tuple[str, MobileCLIP]) -> None:
    name, model = example
    _, want = parity(name)
    image, text, scale = model(images(name), tokens(name))
    assert relative(image, want["image_features_normalized"]) < 1e-5
    assert relative(text, want["text_features_normalized"]) < 1e-5
    known = next(value for key, value in want.items() if key.startswith("logit_scale"))
    assert float(scale) == pytest.approx(float(known), rel=1e-6)
    assert relative(scale * image @ text.T, want["logits_per_image"]) < 1e-4


def test_merged_model_computes_the_same(example: tuple[str, MobileCLIP]) -> None:
    name, model = example
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = vitlet.reparameterize(model)
    image, text = images(name), tokens(name)
    for got, want in (
        (merged.encode_image(image), model.encode_image(image)),
        (merged.encode_text(text), model.encode_text(text)),
    ):
        assert relative(got, want) < 1e-5
        assert relative_difference(got, want) < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_the_first_version_limits_the_scale() -> None:
    for name, want in (("mobileclip_s0", 100.0), ("mobileclip2_s0", float(np.exp(5.0)))):
        model = meta_model(model_info(name))
        scale = torch.tensor(5.0).exp().clamp(max=model.largest_scale)
        assert float(scale) == pytest.approx(want)


def vit(x: Tensor, w: dict[str, Tensor], *, heads: int, eps: float, padding: int) -> Tensor:
    """The plain definition of MobileCLIP's ViT-B, on a state dict with timm's names."""
    for i, stride in enumerate((4, 2, 2)):
        part = f"patch_embed.backbone.{i}"
        bias = w.get(f"{part}.conv.bias")
        x = F.conv2d(x, w[f"{part}.conv.weight"], bias, stride, padding if i == 0 else 0)
        if i < 2:
            mean, var = w[f"{part}.bn.running_mean"], w[f"{part}.bn.running_var"]
            x = F.batch_norm(x, mean, var, w[f"{part}.bn.weight"], w[f"{part}.bn.bias"])
            x = F.gelu(x)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    x = torch.cat((w["cls_token"].expand(len(x), -1, -1), x), 1)
    dim = x.shape[-1]
    block = 0
    while f"blocks.{block}.norm1.weight" in w:
        p = {key.removeprefix(f"blocks.{block}."): value for key, value in w.items()}
        y = F.layer_norm(x, (dim,), p["norm1.weight"], p["norm1.bias"], eps)
        y = F.multi_head_attention_forward(
            y.transpose(0, 1), y.transpose(0, 1), y.transpose(0, 1), dim, heads,
            p["attn.qkv.weight"], p["attn.qkv.bias"], None, None, False, 0.0,
            p["attn.proj.weight"], p["attn.proj.bias"], training=False, need_weights=False,
        )[0].transpose(0, 1)  # fmt: skip
        x = x + y
        y = F.layer_norm(x, (dim,), p["norm2.weight"], p["norm2.bias"], eps)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        block += 1
    x = F.layer_norm(x, (dim,), w["norm.weight"], w["norm.bias"], eps)[:, 0]
    return F.linear(x, w["head.weight"], w["head.bias"])


SMALL = {"embed_dim": 24, "img_size": 64, "dim": 64, "depth": 2, "heads": 4}


@torch.no_grad()
def test_second_versions_vit_is_its_definition() -> None:
    model = fill(TimmViT(**SMALL, patch=16, conv_stem=True, pre_norm=False, eps=1e-6))
    x = images("vit", 2, 64)
    want = vit(x, model.state_dict(), heads=4, eps=1e-6, padding=0)
    assert relative(model(x), want) < 1e-5
    assert relative(vitlet.reparameterize(model)(x), want) < 1e-5
    assert relative(vit(x, model.state_dict(), heads=4, eps=1e-6, padding=1), want) > 1e-2


@torch.no_grad()
def test_first_versions_vit_is_its_definition() -> None:
    from vitlet.models.layouts import translate

    model = fill(AppleViT(**SMALL))
    theirs = TimmViT(**SMALL, patch=16, conv_stem=True, pre_norm=False, eps=1e-6)
    apple = {f"image_encoder.model.{key}": value for key, value in model.state_dict().items()}
    wanted = {f"visual.trunk.{key}": value for key, value in theirs.state_dict().items()}
    renamed = translate(apple, wanted)
    assert set(renamed) == set(wanted)
    state = {key.removeprefix("visual.trunk."): value for key, value in renamed.items()}
    x = images("vit", 2, 64)
    want = vit(x, state, heads=4, eps=1e-5, padding=1)
    assert relative(model(x), want) < 1e-5
    assert relative(vitlet.reparameterize(model)(x), want) < 1e-5


@torch.no_grad()
def test_large_vit_has_a_position_for_its_class_token_and_a_first_norm() -> None:
    model = fill(TimmViT(**SMALL, patch=16, conv_stem=False, pre_norm=True, eps=1e-5))
    w, x = model.state_dict(), images("vit", 2, 64)
    patches = F.conv2d(x, w["patch_embed.proj.weight"], stride=16).flatten(2).transpose(1, 2)
    tokens = torch.cat((w["cls_token"].expand(2, -1, -1), patches), 1) + w["pos_embed"]
    tokens = F.layer_norm(tokens, (64,), w["norm_pre.weight"], w["norm_pre.bias"], 1e-5)
    # The blocks are those of the other ViT: give them to it without stem and positions.
    for block in model.blocks:
        tokens = block(tokens)
    out = F.layer_norm(tokens, (64,), w["norm.weight"], w["norm.bias"], 1e-5)[:, 0]
    assert relative(model(x), F.linear(out, w["head.weight"], w["head.bias"])) < 1e-5


def _eps(name: str, prefix: str) -> set[float]:
    parts = meta_model(model_info(name)).named_modules()
    return {p.eps for path, p in parts if path.startswith(prefix) and isinstance(p, nn.LayerNorm)}


def test_details_that_differ_between_the_models() -> None:
    image_eps = {name: _eps(name, ("image_encoder", "visual")) for name in NAMES}  # type: ignore[arg-type]
    assert image_eps["mobileclip_b"] == {1e-5}
    assert image_eps["mobileclip2_b"] == {1e-6}
    assert image_eps["mobileclip2_l14"] == {1e-5}
    assert image_eps["mobileclip2_s3"] == image_eps["mobileclip2_s4"] == {1e-5}
    for name in NAMES:
        assert _eps(name, ("text_encoder", "text")) == {1e-5}  # type: ignore[arg-type]
        model = meta_model(model_info(name))
        causal = model.text_tower.attn_mask is not None
        assert causal == (name in ("mobileclip_b", "mobileclip2_b"))
        if name.startswith("mobileclip2"):
            assert "text.attn_mask" not in model.state_dict()
    first = meta_model(model_info("mobileclip_b")).image_encoder.model.patch_emb[0].block.conv
    second = meta_model(model_info("mobileclip2_b")).visual.trunk.patch_embed.backbone[0].conv
    assert first.padding == (1, 1) and second.padding == (0, 0)


def small_text(**changes: object) -> MobileCLIP:
    config: dict[str, Any] = {
        "image": "mci0", "layout": "apple", "embed_dim": 32, "text_width": 32, "text_heads": 4,
        "text_layers": 2, "img_size": 64, **changes,
    }  # fmt: skip
    return fill(mobileclip(**config))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["apple", "open_clip"])
def test_causal_text_does_not_see_what_follows_its_end(layout: str) -> None:
    text = tokens("causal")
    changed = text.clone()
    changed[0, 40:] = 5  # row 0 ends at 28
    causal, plain = (small_text(causal=c, layout=layout) for c in (True, False))
    assert relative(causal.encode_text(changed), causal.encode_text(text)) < 1e-6
    assert relative(plain.encode_text(changed), plain.encode_text(text)) > 1e-3
    merged = vitlet.reparameterize(causal)
    assert relative(merged.encode_text(text), causal.encode_text(text)) < 1e-5


@torch.no_grad()
def test_other_image_sizes_and_channels() -> None:
    model = small_text(in_chans=1)
    assert model.encode_image(images("grey", 2, 96, 1)).shape == (2, 32)
    with pytest.raises(ShapeError, match=r"expected images \(batch, 1, height, width\)"):
        model.encode_image(images("colour", 2, 96))
    info = vitlet.create_model("mobileclip_s0", img_size=192, in_chans=1).info
    assert info.input_shape == (1, 192, 192) and info.preprocess.resize_to == 192
    grid = meta_model(model_info("mobileclip_b"), img_size=256).state_dict()
    assert grid["image_encoder.model.pos_embed.pos_embed.pos_embed"].shape == (1, 1, 256, 768)
    grid = meta_model(model_info("mobileclip2_l14"), img_size=336).state_dict()
    assert grid["visual.trunk.pos_embed"].shape == (1, 577, 1024)


def test_impossible_sizes_are_refused() -> None:
    for name, size in (("mobileclip_b", 225), ("mobileclip2_l14", 256), ("mobileclip_s0", 16)):
        with pytest.raises(UsageError, match="img_size must be"):
            meta_model(model_info(name), img_size=size)
    with pytest.raises(ShapeError, match="build the model with img_size="):
        AppleViT(**SMALL)(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 76, dtype=torch.int64), torch.zeros(77, dtype=torch.int64),
            torch.zeros(2, 77)],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["apple", "open_clip"])
def test_wrong_tokens_are_refused(layout: str, bad: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected integer tokens of shape \(batch, 77\)"):
        small_text(layout=layout).encode_text(bad)
