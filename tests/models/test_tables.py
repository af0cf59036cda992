from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitlet.compress.reparameterize import reparameterize
from vitlet.models.registry import ModelInfo, list_models, model_info

CLASSIFIERS = [name for name in list_models() if model_info(name).kind == "classifier"]


def on_meta(info: ModelInfo) -> nn.Module:
    module, function = info.factory.split(":")
    with torch.device("meta"):
        model: nn.Module = getattr(importlib.import_module(module), function)(**info.config)
    return model.eval()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parameters_are_counted_right(name: str) -> None:
    info = model_info(name)
    assert sum(p.numel() for p in on_meta(info).parameters()) == info.params


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_macs_are_those_of_the_merged_model(name: str) -> None:
    info = model_info(name)
    module, function = info.factory.split(":")
    model = reparameterize(getattr(importlib.import_module(module), function)(**info.config))
    # torch counts two operations for each multiply-accumulate of convolutions and products.
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.to("meta")(torch.empty(1, *info.input_shape))
    assert counter.get_total_flops() / 2e6 == pytest.approx(info.macs, abs=0.06)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_input_fits_the_model(name: str) -> None:
    info = model_info(name)
    out = on_meta(info)(torch.empty(2, *info.input_shape, device="meta"))
    assert out.shape == (2, info.config["num_classes"])


def test_tables_need_no_torch() -> None:
    code = (
        "import sys, vitlet; [vitlet.model_info(name) for name in vitlet.list_models()];"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
