from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import keys, state_dict
from safetensors.torch import save_file
from torch import Tensor

import vitlet
from vitlet.errors import UsageError


@pytest.fixture(scope="module")
def xs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "xs.safetensors"
    save_file(state_dict(keys("rcvit_xs")), path)
    return path


@pytest.mark.parametrize(
    ("name", "given_arguments", "said"),
    [
        ("mobileclip_s0", {"num_classes": 10}, "has no classifier, so num_classes=10"),
        ("mobileclip_s0", {"img_sise": 224}, "takes no argument 'img_sise': did you mean img_size"),
        ("mobileclip_s0", {"features_only": True}, "takes no argument 'features_only'"),
        ("deit_tiny", {"zzz": 1}, "takes no argument 'zzz': it takes depth, dim"),
        ("deit_tiny", {"num_classes": 0}, "num_classes must be a whole number from 1 up, got 0"),
        ("deit_tiny", {"img_size": 2.5}, "img_size must be a whole number from 1 up, got 2.5"),
        ("deit_tiny", {"in_chans": True}, "in_chans must be a whole number"),
        ("deit_tiny", {"in_chans": 2}, "in_chans must be 1"),
        ("deit_tiny", {"heads": 5}, "heads must divide dim"),
        ("deit_tiny", {"depth": "many"}, "this configuration cannot be built"),
        ("deit_tny", {}, "did you mean deit_tiny"),
    ],
)
def test_wrong_arguments_are_refused(
    name: str, given_arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        vitlet.create_model(name, **given_arguments)


def test_building_from_a_checkpoint_draws_no_random_numbers(xs_file: Path) -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    vitlet.create_model("casvit_xs", xs_file)
    assert torch.equal(torch.rand(1), want)


@torch.no_grad()
def test_a_causal_model_from_a_checkpoint_has_its_mask() -> None:
    from vitlet.models.build import _empty
    from vitlet.models.mobileclip import mobileclip

    config = {
        "image": "mci0", "layout": "open_clip", "embed_dim": 32, "text_width": 32,
        "text_heads": 4, "text_layers": 1, "causal": True,
    }  # fmt: skip
    mask = _empty(mobileclip, config).text_tower.attn_mask
    assert isinstance(mask, Tensor)
    assert torch.equal(mask, torch.full((77, 77), float("-inf")).triu(1))
