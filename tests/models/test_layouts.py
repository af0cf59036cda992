from __future__ import annotations

import pytest
import torch
from made_up import describe, fill, images, keys, relative, tokens

from vitlet.checkpoint import fit
from vitlet.errors import CheckpointError
from vitlet.models.build import meta_model
from vitlet.models.layouts import HEAD_BIASES, renamed, translate
from vitlet.models.mobileclip import MobileCLIP, mobileclip
from vitlet.models.registry import model_info

# Models whose two halves exist in both layouts: the same network but for eps and padding.
PAIRS = [("mobileclip_s2", "mobileclip2_s2"), ("mobileclip_b", "mobileclip2_b")]


@pytest.mark.parametrize(("apple", "open_clip"), PAIRS)
def test_every_tensor_has_a_name_and_shape_in_the_other_layout(apple: str, open_clip: str) -> None:
    first, second = (meta_model(model_info(n)).state_dict() for n in (apple, open_clip))
    there = translate(first, second)
    assert {k: v.shape for k, v in there.items()} == {k: v.shape for k, v in second.items()}
    without_bias = {k: v for k, v in second.items() if k not in HEAD_BIASES}
    back = translate(without_bias, first)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in first.items()}


@pytest.mark.parametrize("name", ["s0", "s1", "s2", "b"])
def test_no_two_tensors_get_one_name(name: str) -> None:
    for stem in (f"mobileclip_{name}", f"reparam_mobileclip_{name}"):
        names = [key for key, _, _ in keys(stem)]
        there = [renamed(key).key for key in names]
        assert len(set(there)) == len(names)
        assert not any(key.startswith(("image_encoder", "text_encoder")) for key in there)


def small(layout: str) -> MobileCLIP:
    return fill(
        mobileclip(
            image="mci0", layout=layout, embed_dim=64, text_width=64, text_heads=4,
            text_layers=2, img_size=64,
        )  # type: ignore[arg-type]
    )  # fmt: skip


@torch.no_grad()
def test_weights_give_the_same_outputs_in_either_layout() -> None:
    apple, open_clip = small("apple"), small("open_clip")
    x, text = images("layouts", 2, 64), tokens("layouts")
    want = apple.encode_image(x), apple.encode_text(text)
    assert relative(open_clip.encode_image(x), want[0]) > 0.1  # other weights so far
    fit(open_clip, apple.state_dict(), "apple into open_clip")
    assert relative(open_clip.encode_image(x), want[0]) < 1e-5
    assert relative(open_clip.encode_text(text), want[1]) < 1e-5
    again = small("apple")
    state = open_clip.state_dict()
    assert not state["visual.trunk.head.fc.bias"].any()
    fit(again, state, "open_clip into apple")
    for key, value in apple.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@torch.no_grad()
def test_first_version_takes_a_checkpoint_whose_halves_differ_in_layout() -> None:
    apple, open_clip = small("apple"), small("open_clip")
    theirs = translate(apple.state_dict(), open_clip.state_dict())
    mixed = {k: v for k, v in theirs.items() if k.startswith("visual.")}
    mixed |= {k: v for k, v in apple.state_dict().items() if not k.startswith("image_encoder.")}
    again = small("apple")
    again.image_encoder.model.head.proj.zero_()
    fit(again, mixed, "mixed")
    assert torch.equal(again.image_encoder.model.head.proj, apple.image_encoder.model.head.proj)


def test_a_head_bias_has_no_place_in_the_first_version() -> None:
    apple, open_clip = small("apple"), small("open_clip")
    with pytest.raises(CheckpointError, match=r"head\.fc\.bias.*MobileCLIP2"):
        fit(apple, open_clip.state_dict(), "mobileclip_s0")


@torch.no_grad()
def test_upstreams_merged_checkpoint_loads() -> None:
    """Its names are known (tests/keys); its values follow from merging each block alone."""
    from vitlet.layers.large_kernel import LargeKernelConv
    from vitlet.layers.mobileone import MobileOneBlock
    from vitlet.layers.rep_cpe import RepCPE
    from vitlet.layers.rep_mixer import RepMixer

    config = {**model_info("mobileclip_s0").config, "embed_dim": 64, "text_width": 64}
    source = fill(mobileclip(**config))
    merged = mobileclip(**config, merged=True).eval()
    state = {k: v for k, v in source.state_dict().items() if k in merged.state_dict()}
    kinds = {
        MobileOneBlock: "reparam_conv", RepMixer: "reparam_conv", RepCPE: "reparam_conv",
        LargeKernelConv: "lkb_reparam",
    }  # fmt: skip
    for path, part in source.named_modules():
        name = kinds.get(type(part))
        if name is None or ".token_mixer." in path:
            continue
        conv = part.reparameterized()
        conv = conv[0] if isinstance(conv, torch.nn.Sequential) else conv
        state |= {f"{path}.{name}.{k}": v for k, v in conv.state_dict().items()}
    assert {key for key, _, _ in describe(merged)} == set(state)
    fit(merged, state, "merged")
    x, text = images("merged", 2, 64), tokens("merged")
    assert relative(merged.encode_image(x), source.encode_image(x)) < 1e-5
    assert relative(merged.encode_text(text), source.encode_text(text)) < 1e-5
