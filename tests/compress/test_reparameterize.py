from __future__ import annotations

import pytest
import torch
from made_up import fill
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import vitlet
from vitlet.models.build import meta_model
from vitlet.models.casvit import casvit
from vitlet.models.registry import list_models, model_info


@pytest.mark.parametrize("name", list_models())
def test_no_batch_norm_is_left_and_the_argument_stays_as_it_was(name: str) -> None:
    model = meta_model(model_info(name)).train()
    names = list(model.state_dict())
    with torch.device("meta"):
        merged = vitlet.reparameterize(model)
    left = [path for path, part in merged.named_modules() if isinstance(part, _BatchNorm)]
    assert left == []
    assert not any("running_mean" in key for key in merged.state_dict())
    assert list(model.state_dict()) == names
    assert model.training and not merged.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in merged.parameters())


@torch.no_grad()
def test_a_model_in_training_mode_merges_as_its_eval_mode() -> None:
    small = casvit(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40), num_classes=5)
    model = fill(nn.Sequential(small)).train()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    got = vitlet.reparameterize(model)(x)
    want = model.eval()(x)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
