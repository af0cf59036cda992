"""A model with a token mixer through the command line, compiled by TVM with and without kernels."""

from __future__ import annotations

import json
import sys

import pytest

pytest.importorskip("tvm")

OWN = """
import torch
from torch import nn
from vitlet.data.spec import Preprocess
from vitlet.layers import AdditiveTokenMixer
from vitlet.models.registry import ModelInfo

def build():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.stem = nn.Conv2d(3, 12, 4, 4)
    model.mixer = AdditiveTokenMixer(12)
    model.act = nn.GELU()
    model.pool = nn.AdaptiveAvgPool2d(2)
    model.flat = nn.Flatten()
    model.head = nn.Linear(48, 4)
    for name, value in model.state_dict().items():
        if name.startswith("mixer") and value.ndim > 1:
            value.normal_(0, 1.5 / value[0].numel() ** 0.5)
    model.info = ModelInfo(
        "own", "custom", "classifier", "own:build", {}, Preprocess((32, 32), resize_to=32),
        params=1, macs=1.0, licence="MIT", source="here",
    )
    return model.eval()

def wrong(name, change):
    model = build()
    with torch.no_grad():
        change(model.get_parameter(name))
    return model

def wrong_gate():
    return wrong("mixer.oper_q.1.block.1.weight", lambda w: w.neg_())

def wrong_head():
    return wrong("head.bias", lambda b: b.add_(0.3))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the module `own` and its bundles: `True.vitlet` calls the kernels."""
    from vitlet.apps.cli import main

    folder = tmp_path_factory.mktemp("extern")
    (folder / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delitem(sys.modules, "own", raising=False)
        for extern in (False, True):
            argv = ["export", "own:build", "--to", "tvm", "-o", f"{extern}.vitlet", "-q"]
            assert main(argv + ["--tvm-extern", "vitlet"] * extern) == 0
        yield folder
    sys.modules.pop("own", None)


@pytest.mark.parametrize("extern", [False, True])
def test_what_was_exported_is_verified_predicts_and_is_timed(cli, made, pictures, extern) -> None:
    bundle = made / f"{extern}.vitlet"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["artifacts"][0]["details"].get("extern") == ("vitlet" if extern else None)
    assert cli("verify", bundle).code == 0
    predicted = cli("predict", bundle, pictures / "a.png", "--json")
    assert predicted.code == 0, predicted.err
    timed = cli("bench", bundle, "--iters", "3", "--warmup", "1", "--json")
    assert timed.code == 0, timed.err
    shown = cli("inspect", bundle)
    assert shown.code == 0 and "passed" in shown.out


@pytest.mark.parametrize("extern", [False, True])
@pytest.mark.parametrize(("flaw", "layer"), [("wrong_gate", "mixer"), ("wrong_head", "head")])
def test_verify_names_the_layer_that_differs(cli, made, extern, flaw, layer) -> None:
    argv = ["--against", f"own:{flaw}", "--inputs", "worst", "--first-bad", "--json"]
    ran = cli("verify", made / f"{extern}.vitlet", *argv)
    assert ran.code == 4, ran.err
    (artifact,) = json.loads(ran.out)["artifacts"]
    assert artifact["first_bad"]["module"] == layer
