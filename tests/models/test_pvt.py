"""PVT and its ShiftAddViT forms: names as published, and what the options change."""

from __future__ import annotations

import pytest
import torch

import vitlet
from vitlet.errors import UsageError

SMALL = {"dims": (16, 32, 40, 48), "depths": (1, 1, 1, 1), "num_classes": 7, "img_size": 64}
FORMS = ("softmax", "spatial_reduction", "linear_angular", "binary", "binary_batch", "ksh")


def keys(**config: object) -> set[str]:
    model = vitlet.create_model("pvt_v2_b0", **{**SMALL, **config})  # type: ignore[arg-type]
    return set(model.state_dict())


def layer(path: str, *, bias: bool = True) -> set[str]:
    return {f"{path}.weight", f"{path}.bias"} if bias else {f"{path}.weight"}


def mixture(path: str) -> set[str]:
    shift = {f"{path}.experts.1.{name}" for name in ("shift", "sign", "bias")}
    return layer(f"{path}.gate.gate") | layer(f"{path}.experts.0") | shift


def test_names_are_those_of_the_published_checkpoints() -> None:
    found = keys()
    assert layer("patch_embed1.proj") | layer("patch_embed4.norm") | layer("norm3") <= found
    block = {key.removeprefix("block1.0.") for key in found if key.startswith("block1.0.")}
    parts = ("norm1", "attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm", "norm2", "mlp.fc1",
             "mlp.dwconv.dwconv", "mlp.fc2")  # fmt: skip
    assert block == set().union(*(layer(part) for part in parts))
    assert not any("attn.sr" in key for key in found if key.startswith("block4."))


@pytest.mark.parametrize(
    ("attention", "parts"),
    [
        ("softmax", layer("qkv") | layer("proj")),
        ("linear_angular", layer("qkv") | layer("proj") | layer("dconv", bias=False)),
        ("binary_batch", layer("qkv") | layer("proj") | layer("dconv", bias=False)),
        (
            "ksh",
            layer("to_qk") | layer("to_v") | layer("proj") | layer("dconv", bias=False)
            | {"qk_quant.projection_matrix"}
            | {f"qk_quant.ksh.{name}" for name in ("A", "mvec", "anchor")},
        ),
    ],
)  # fmt: skip
def test_shift_add_forms_have_the_names_of_their_code(attention: str, parts: set[str]) -> None:
    found = keys(attention=attention)
    head = "block1.0.attn."
    assert {key.removeprefix(head) for key in found if key.startswith(head)} == parts
    head = "block4.0.attn."  # the last stage keeps softmax
    last = {key.removeprefix(head) for key in found if key.startswith(head)}
    assert last == layer("qkv") | layer("proj")


def test_mixtures_have_the_names_of_their_code() -> None:
    found = keys(attention="ksh", moe_mlp=True, moe_attn=True)
    for path in ("block1.0.mlp.fc1", "block4.0.mlp.fc2", "block2.0.attn.to_qk"):
        assert mixture(path) == {key for key in found if key.startswith(f"{path}.")}
    assert layer("block4.0.attn.qkv") <= found


@pytest.mark.parametrize("attention", FORMS)
def test_an_image_gives_the_same_alone_and_in_a_batch_unless_the_batch_sets_thresholds(
    attention: str,
) -> None:
    model = vitlet.create_model("pvt_v2_b0", attention=attention, **SMALL)  # type: ignore[arg-type]
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together, alone = model(x), model(x[:1])
    assert together.shape == (3, 7) and together.isfinite().all()
    close = torch.allclose(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert close or attention == "binary_batch"


def test_version_1_has_positions_in_every_stage_and_a_class_token_in_the_last() -> None:
    model = vitlet.create_model("pvt_v1_tiny", attention="binary", **SMALL)  # type: ignore[arg-type]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert [shapes[f"pos_embed{i}"][1] for i in (1, 2, 3, 4)] == [256, 64, 16, 5]
    assert shapes["cls_token"] == (1, 1, 48) and "block4.0.attn.kv.weight" in shapes
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(vitlet.errors.ShapeError, match="build the model with img_size="):
        model(torch.zeros(2, 3, 32, 32))


def test_what_cannot_be_built_is_refused() -> None:
    for name, config, message in (
        ("pvt_v2_b0", {"attention": "hash"}, "attention must be one of softmax"),
        ("pvt_v2_b0", {"attention": "softmax", "moe_attn": True}, "other than softmax"),
        ("pvt_v2_b0", {"img_size": 16}, "32 or more"),
        ("pvt_v1_tiny", {"img_size": 60}, "multiple of 32"),
    ):
        with pytest.raises(UsageError, match=message):
            vitlet.create_model(name, **config)  # type: ignore[arg-type]
