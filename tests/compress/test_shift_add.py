"""Converting a model to binary attention and shift layers: what changes and what stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vitlet
from vitlet.compress.shift_add import shift_add
from vitlet.errors import ShapeError, UsageError
from vitlet.layers import ShiftLinear
from vitlet.layers.linear_angular_attention import LinearAngularAttention
from vitlet.layers.mixture_linear import MixtureLinear
from vitlet.models.deit import DeiT
from vitlet.models.pvt_v2 import PVTv2

FASHION = Path(vitlet.__file__).parent / "data/assets/fashion_test.npz"


@pytest.fixture(scope="module")
def plain() -> DeiT:
    torch.manual_seed(0)
    model = DeiT(dim=32, depth=3, heads=2, patch_size=8, img_size=32, num_classes=6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_attention_becomes_binary_and_the_argument_stays_as_it_is(
    plain: DeiT, images: Tensor
) -> None:
    before = state(plain)
    made, report = shift_add(plain, calibration=images)
    assert [change.path for change in report.changes] == [f"blocks.{i}.attn" for i in range(3)]
    assert report.count("binary attention") == 3
    assert all(isinstance(block.attn, LinearAngularAttention) for block in made.blocks)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    assert made(images).shape == (16, 6)


def test_calibration_on_real_pictures_keeps_more_answers() -> None:
    model = vitlet.create_model("vit_fashion")
    pictures = np.load(FASHION)["images"][:256].astype(np.float32) / 255
    x = torch.from_numpy((pictures - 0.2860) / 0.3530)[:, None]
    fitted, report = shift_add(model, calibration=x[:96])
    raw, _ = shift_add(model)
    with torch.no_grad():
        kept, lost = (float((m(x[128:]).argmax(1) == model(x[128:]).argmax(1)).float().mean())
                      for m in (fitted, raw))  # fmt: skip
        assert kept > lost + 0.1
        # A threshold is the mean over the calibration pictures of a head's numbers, or as many
        # deviations above it for all heads.
        tokens = model.blocks[0].norm1(model._tokens(x[:96]))  # type: ignore[operator, union-attr, index]
        layer = fitted.blocks[0].attn  # type: ignore[union-attr, index]
        assert isinstance(layer, LinearAngularAttention)
        q = layer.directions(tokens)[0]
    above = (layer.q_threshold.detach() - q.mean(dim=(0, 2, 3))) / q.std(dim=(0, 2, 3))
    torch.testing.assert_close(above, above[:1].expand(3), rtol=0, atol=1e-4)
    assert min(abs(float(above[0]) - one) for one in (0.0, 0.35, 0.7, 1.05, 1.4)) < 1e-4
    assert all(change.error is not None and change.error < 0.8 for change in report.changes)


def test_linear_layers_become_shift_layers_where_asked(plain: DeiT) -> None:
    for layers, count in (("mlp", 6), ("attention", 6), ("all", 12), ("blocks.1.mlp.fc?", 2)):
        made, report = shift_add(plain, attention="unchanged", linear="shift", layers=layers)
        found = [name for name, part in made.named_modules() if isinstance(part, ShiftLinear)]
        assert len(found) == report.count("shift") == count
        assert isinstance(made.head, nn.Linear)
    mixed, report = shift_add(plain, linear="moe", latency=(2.0, 1.0))
    assert report.count("mixture") == 6 and report.count("binary attention") == 3
    layer = mixed.blocks[0].mlp.fc1
    assert isinstance(layer, MixtureLinear) and layer.wanted_shares == pytest.approx((1 / 3, 2 / 3))


def test_softmax_attention_works_with_projections_of_shifts() -> None:
    torch.manual_seed(0)
    model = PVTv2(
        dims=(16, 32), depths=(1, 1), heads=(1, 2), mlp_ratios=(2, 2), attention="softmax",
        num_classes=5, img_size=32,
    ).eval()  # fmt: skip
    made, report = shift_add(model, attention="unchanged", linear="shift", layers="all")
    assert report.count("shift") == 6
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(vitlet.reparameterize(made)(x), made(x))


def test_shift_layers_keep_the_function_up_to_their_rounding(images: Tensor) -> None:
    trained = vitlet.create_model("vit_fashion")
    made, _ = shift_add(trained, attention="unchanged", linear="shift")
    x = torch.nn.functional.interpolate(images[:, :1, :7, :7], 28, mode="bicubic")
    with torch.no_grad():
        wanted, found = trained(x), made(x)
    assert torch.nn.functional.cosine_similarity(wanted, found).mean() > 0.97


def test_the_last_stage_of_a_pyramid_keeps_its_attention_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    model = PVTv2(dims=(16, 32, 40, 48), depths=(1, 1, 1, 1), num_classes=5, img_size=64).eval()
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    made, report = shift_add(model, linear="shift", layers="all", calibration=x)
    by_path = {change.path: change for change in report.changes}
    assert by_path["block1.0.attn"].now == "binary attention"
    assert "not of a reduced map" in by_path["block1.0.attn"].note
    assert by_path["block4.0.attn"].now == by_path["block4.0.attn.q"].now == "unchanged"
    assert "last stage" in by_path["block4.0.attn"].note
    assert by_path["block1.0.attn.qkv"].now == by_path["block4.0.mlp.fc1"].now == "shift"
    with torch.no_grad():
        assert made(x).isfinite().all()


def test_a_weight_of_zero_stays_zero_and_one_that_is_not_finite_is_refused(plain: DeiT) -> None:
    model, _ = shift_add(plain, linear="shift")  # a copy to spoil
    zeroed = vitlet.create_model("vit_fashion")
    layer = zeroed.blocks[0].mlp.fc1  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    made, _ = shift_add(zeroed, attention="unchanged", linear="shift", layers="blocks.0.mlp.fc1")
    with torch.no_grad():
        assert not made.blocks[0].mlp.fc1(torch.randn(3, 96)).any()  # type: ignore[operator, union-attr, index]
        layer.weight[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"blocks.0.mlp.fc1 has weights that are NaN"):
        shift_add(zeroed, attention="unchanged", linear="shift")
    with pytest.raises(UsageError, match=r"nothing to convert|no linear layer"):
        shift_add(model, attention="unchanged", linear="shift")


def test_bad_input_is_refused(plain: DeiT, images: Tensor) -> None:
    for options, message in (
        ({"attention": "hash"}, "attention must be binary"),
        ({"linear": "ternary"}, "linear must be shift"),
        ({"linear": "shift", "layers": "encoder.*"}, r"fits encoder\.\*"),
        ({"calibration": images * torch.nan}, "NaN or infinite"),
        ({"calibration": torch.ones(2, 3, 32, 32)}, "constant"),
        ({"attention": "unchanged"}, "nothing to convert in DeiT"),
    ):
        with pytest.raises(UsageError, match=message):
            shift_add(plain, **options)  # type: ignore[arg-type]
    for calibration in (images[:0], images[0]):
        with pytest.raises(ShapeError, match="calibration images"):
            shift_add(plain, calibration=calibration)
    with pytest.raises(UsageError, match="no softmax attention"):
        shift_add(nn.Sequential(nn.Linear(3, 3)))
