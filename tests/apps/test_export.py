"""`vitlet export` and `vitlet verify`: what is refused before work, and how work ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


@pytest.fixture
def own(tmp_path, monkeypatch, own_source):
    """A folder, made the current one, with a module `own` in it."""
    (tmp_path / "own.py").write_text(own_source(16))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own", raising=False)
    yield tmp_path
    __import__("sys").modules.pop("own", None)


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["casvit_xz", "--to", "onnx"], 2, "did you mean casvit_xs"),
        (["casvit_xs", "--to", "onxx"], 2, "did you mean 'onnx'"),
        (["casvit_xs"], 2, "--to"),
        (["casvit_xs", "--to", "onnx"], 2, "--weights CHECKPOINT"),
        (["casvit_xs", "--to", "onnx", "--weights", "none.pt"], 2, "none.pt does not exist"),
        (["none.pt", "--to", "onnx"], 2, "none.pt does not exist"),
        (["casvit_fashion", "--to", "onnx", "--random-weights"], 2, "embedded weights"),
        (["casvit_fashion", "--to", "onnx", "--seed", "1"], 2, "--seed"),
        (
            ["casvit_fashion", "--to", "tvm", "--precision", "fp16"],
            3,
            "tvm does not take precision",
        ),
        (["casvit_fashion", "--to", "onnx", "--ios", "16"], 3, "ios=16 means nothing to onnx"),
        (["casvit_fashion", "--to", "ios", "--ios", "12"], 3, "does not take ios=12"),
        (["casvit_fashion", "--to", "onnx", "--opset", "9"], 3, "does not take opset=9"),
        (["casvit_fashion", "--to", "tvm", "--accelerate", "fp32"], 3, "means nothing to tvm"),
        (["casvit_fashion", "--to", "tvm", "--tvm-extern", "foo"], 3, "it takes vitlet"),
        (["casvit_fashion", "--to", "onnx", "--tvm-extern", "vitlet"], 3, "means nothing to onnx"),
        (
            ["vit_fashion", "--to=tvm", "--tvm-extern=vitlet", "--triple=native,sparc-linux-gnu"],
            3,
            "does not go with triple 'sparc-linux-gnu'",
        ),
        (["casvit_fashion", "--to", "onnx", "--accelerate", "int4"], 3, "accelerate='int4'"),
        (["vit_fashion", "--to", "onnx", "--accelerate-table", "x"], 2, "give that too"),
        (
            [
                "vit_fashion",
                "--to",
                "onnx",
                "--accelerate",
                "fp32",
                "--accelerate-table",
                "no.json",
            ],
            2,
            "cannot read an accelerate table",
        ),
        (["casvit_fashion", "--to", "onnx", "--batch", "8:1"], 2, "batch"),
        (["casvit_fashion", "--to", "onnx", "--no-verify", "--tol", "max=1"], 2, "--no-verify"),
        (["casvit_fashion", "--to", "onnx", "--tol", "speed=1"], 2, "not a tolerance"),
        (["casvit_fashion", "--to", "onnx", "--report", "r.pdf"], 2, "--report must end in"),
        (["own:nothing", "--to", "onnx"], 2, "has no function 'nothing'"),
        (["nowhere:build", "--to", "onnx"], 2, "no module 'nowhere'"),
        (["own:number", "--to", "onnx"], 2, "it gave int"),
        (["own:build", "--to", "onnx"], 2, "info"),
        (["own:build", "--to", "onnx", "--weights", "own.py"], 2, "builds and loads"),
        (["own:build", "--to", "onnx", "--in-chans", "3"], 2, "--img-size"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_and_leaves_nothing(cli, own, argv, code, words):
    ran = cli("export", *argv, "-o", "out/deep", "-q")
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert len(ran.err.splitlines()) == 1
    assert words in ran.err
    assert sorted(p.name for p in own.iterdir() if p.name != "__pycache__") == ["own.py"]


def test_a_model_of_ones_own_is_exported_and_verified(cli, own):
    ran = cli(
        "export", "own:with_info", "--to", "onnx", "--json", "--report", "r.html", "-o", "out"
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert data["verified"] is True
    assert data["artifacts"][0]["verification"]["status"] == "passed"
    assert Path(data["bundle"]) == (own / "out" / "with_info.vitlet").resolve()
    assert (own / "r.html").is_file()
    assert cli("verify", "out/with_info.vitlet").code == 0
    again = cli("export", "own:with_info", "--to", "onnx", "-o", "out")
    assert again.code == 2 and "exists" in again.err


def test_a_model_without_info_is_told_what_is_assumed_of_its_input(cli, own):
    ran = cli("export", "own:build", "--to", "onnx", "--img-size", "32", "-q")
    assert ran.code == 0, ran.err
    assert ran.err.startswith("warning: own:build: taking shortest side to 32")


def test_what_differs_is_kept_as_unverified_with_exit_code_4(cli, own):
    argv = ["export", "own:with_info", "--to", "onnx", "--tol", "max=1e-15", "--no-progress"]
    ran = cli(*argv)
    assert ran.code == 4
    assert "with_info.vitlet.unverified" in ran.err
    assert "failed" in ran.out
    assert not (own / "with_info.vitlet").exists()
    assert (own / "with_info.vitlet.unverified" / "manifest.json").is_file()
    assert cli("verify", "with_info.vitlet.unverified").code == 0  # by the usual limits


def test_without_verification_there_is_a_warning(cli, own):
    ran = cli("export", "own:with_info", "--to", "onnx", "--no-verify", "-q")
    assert ran.code == 0
    assert "warning: nothing was verified" in ran.err


def test_verify_finds_a_flipped_weight_and_names_the_layer(cli, own):
    assert cli("export", "own:with_info", "--to", "onnx").code == 0
    path = own / "broken.onnx"
    model = onnx.load(own / "with_info.vitlet" / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    values = -numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    ran = cli("verify", path, "--against", "own:with_info", "--first-bad", "--json")
    assert ran.code == 4
    (artifact,) = json.loads(ran.out)["artifacts"]
    assert artifact["status"] == "failed"
    assert artifact["first_bad"]["module"]


def test_verify_says_what_it_needs(cli, own, toy_bundle):
    assert "--against" in cli("verify", toy_bundle / "model.onnx").err
    ran = cli("verify", toy_bundle, "--first-bad")
    assert ran.code == 2 and "--against" in ran.err
    ran = cli("verify", toy_bundle, "--weights", "own.py")
    assert ran.code == 2 and "--against" in ran.err


def test_verify_refuses_a_changed_bundle(cli, toy_bundle, tmp_path):
    copy = Path(shutil.copytree(toy_bundle, tmp_path / "copy.vitlet"))
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(data)
    ran = cli("verify", copy)
    assert (ran.code, ran.out) == (6, "")
    assert "model.onnx was changed" in ran.err
