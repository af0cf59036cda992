from __future__ import annotations

import argparse
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import fill, images, keys, relative, state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

import vitlet
from vitlet.checkpoint import fit, load_state_dict
from vitlet.errors import CheckpointError
from vitlet.models.build import meta_model
from vitlet.models.casvit import CASViT, casvit
from vitlet.models.nearest import nearest
from vitlet.models.registry import model_info

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


@pytest.fixture(scope="module")
def xs_state() -> dict[str, Tensor]:
    return state_dict(keys("rcvit_xs"))


@pytest.fixture(scope="module")
def xs_file(tmp_path_factory: pytest.TempPathFactory, xs_state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "xs.safetensors"
    save_file(xs_state, path)
    return path


def equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)


# Reading.


def test_safetensors_and_torch_files_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pt")
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert equal(load_state_dict(path), TENSORS), path.name


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "really_safe.pt")
    torch.save(TENSORS, tmp_path / "really_torch.safetensors")
    for path in tmp_path.iterdir():
        assert equal(load_state_dict(path), TENSORS), path.name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t, "epoch": 3},
        lambda t: {"model_ema": t},
        lambda t: {"state_dict": {"module." + k: v for k, v in t.items()}, "lr": 0.1},
        lambda t: {"state_dict": {"model." + k: v for k, v in t.items()}},
        lambda t: {"model": {"module": t}},
        lambda t: {"_orig_mod." + k: v for k, v in t.items()},
        lambda t: {"model": t, "args": argparse.Namespace(lr=1e-3, data="x")},
    ],
)
def test_wrappers_are_taken_off(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object]
) -> None:
    torch.save(wrap(TENSORS), tmp_path / "a.pt")
    assert equal(load_state_dict(tmp_path / "a.pt"), TENSORS)


def test_which_weights_were_taken_is_logged_and_can_be_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = {key: value + 1 for key, value in TENSORS.items()}
    torch.save({"model": TENSORS, "model_ema": averaged}, tmp_path / "a.pt")
    with caplog.at_level(logging.INFO, "vitlet"):
        assert equal(load_state_dict(tmp_path / "a.pt"), TENSORS)
    assert "took model (it also has model_ema)" in caplog.text
    assert equal(load_state_dict(tmp_path / "a.pt", key="model_ema"), averaged)
    with pytest.raises(CheckpointError, match="no entry 'ema': it has model, model_ema"):
        load_state_dict(tmp_path / "a.pt", key="ema")


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare 2", "bare 4"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    target, path = tmp_path / "was_run", tmp_path / "bad.pt"
    content = {"model": TENSORS if form in ("zip", "legacy") else {}, "more": _Code(target)}
    if form.startswith("bare"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    said = "it is damaged or holds more than" if form == "bare 4" else r"it asks to run \w+\.mkdir"
    with pytest.raises(CheckpointError, match=f"was refused: {said}") as caught:
        load_state_dict(path)
    assert not target.exists()
    assert caught.value.exit_code == 6 and "\n" not in str(caught.value)


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match=r"asks to run torch\.nn\.modules\.linear\.Linear"):
        load_state_dict(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.pt", b"", "is empty"),
        ("empty.safetensors", b"", "is empty"),
        ("short.safetensors", b"\x08\x00", "not a whole safetensors file"),
        ("huge.safetensors", b"\xff" * 7 + b"\x7f{}", "not a whole safetensors file"),
        ("long.safetensors", (1 << 40).to_bytes(8, "little") + b"{}", "not a whole safetensors"),
        ("text.pt", b"hello, I am a text", "neither a safetensors nor a PyTorch file"),
        ("page.pt", b"<!doctype html><html>", "neither a safetensors nor a PyTorch file"),
        ("zip.pt", b"PK\x03\x04 and no more", "not a whole PyTorch file"),
        ("pickle.pt", b"\x80\x02 and no more", "was refused: it is damaged"),
        ("pickle4.pt", b"\x80\x04\x95", "was refused: it is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_state_dict(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_state_dict(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"epoch": 3}, "holds no tensors: it has epoch"),
        ({}, "holds no tensors: it has nothing"),
        ([1, 2], "holds a list, not a state dict"),
        (torch.zeros(2), "holds a Tensor, not a state dict"),
        ({"a": torch.eye(3).to_sparse()}, "'a' is not a plain dense tensor"),
        ({"a": torch.empty(2, device="meta")}, "'a' is not a plain dense tensor"),
    ],
)
def test_files_without_plain_tensors_are_refused(
    tmp_path: Path, content: object, said: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=said):
        load_state_dict(tmp_path / "a.pt")


def test_a_zip_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("readme.txt", "nothing here")
    with pytest.raises(CheckpointError, match="not a whole PyTorch file"):
        load_state_dict(tmp_path / "a.pt")


SLOW_OK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW_OK
@given(content=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
def test_no_bytes_give_anything_but_a_checkpoint_error(
    tmp_path: Path, content: bytes, head: bytes
) -> None:
    path = tmp_path / "any.pt"
    path.write_bytes(head + content)
    with pytest.raises(CheckpointError):
        load_state_dict(path)


@SLOW_OK
@given(data=st.data(), kind=st.sampled_from(["safetensors", "zip", "legacy"]))
def test_a_truncated_or_altered_file_gives_tensors_or_a_checkpoint_error(
    tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    whole, path = tmp_path / f"whole.{kind}", tmp_path / "damaged"
    if kind == "safetensors":
        save_file(TENSORS, whole)
    else:
        torch.save(TENSORS, whole, _use_new_zipfile_serialization=kind == "zip")
    content = bytearray(whole.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        state = load_state_dict(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(value, Tensor) for value in state.values())


# Fitting.


def test_a_checkpoint_is_loaded_whole(xs_file: Path, xs_state: dict[str, Tensor]) -> None:
    model = vitlet.create_model("casvit_xs", xs_file)
    assert equal(model.state_dict(), xs_state)
    assert not model.training and model.info.name == "casvit_xs"


@pytest.mark.parametrize("both", [True, False])
def test_the_second_head_is_there_if_the_checkpoint_has_it(
    tmp_path: Path, xs_state: dict[str, Tensor], both: bool
) -> None:
    state = {k: v for k, v in xs_state.items() if both or not k.startswith("dist_head")}
    save_file(state, tmp_path / "xs.safetensors")
    model = vitlet.create_model("casvit_xs", tmp_path / "xs.safetensors")
    assert isinstance(model, CASViT)
    assert (model.dist_head is not None) == both
    assert model.info.config["distillation"] is both


@torch.no_grad()
def test_half_precision_is_loaded_as_single(tmp_path: Path, xs_state: dict[str, Tensor]) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in xs_state.items()}
        save_file(state, tmp_path / "xs.safetensors")
        model = vitlet.create_model("casvit_xs", tmp_path / "xs.safetensors")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert relative(model.patch_embed[0].weight, xs_state["patch_embed.0.weight"]) < 1e-2


def test_counters_that_change_nothing_may_be_missing(
    tmp_path: Path, xs_state: dict[str, Tensor]
) -> None:
    state = {k: v for k, v in xs_state.items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "xs.safetensors")
    vitlet.create_model("casvit_xs", tmp_path / "xs.safetensors")


def test_stage_maps_need_no_heads_from_the_checkpoint(xs_file: Path) -> None:
    model = vitlet.create_model("casvit_xs", xs_file, features_only=True)
    with torch.no_grad():
        maps = model(images("maps", 1, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (48, 16, 16), (56, 8, 8), (112, 4, 4), (220, 2, 2),
    ]  # fmt: skip


def test_a_missing_tensor_is_named_with_its_shape(xs_state: dict[str, Tensor]) -> None:
    state = {k: v for k, v in xs_state.items() if k != "network.0.0.attn.qkv.weight"}
    said = (
        r"no tensor 'network.0.0.attn.qkv.weight' \(144, 48, 1, 1\); "
        r"the nearest zoo model is 'casvit_xs' itself \(\d+ of \d+ tensors fit\)"
    )
    with pytest.raises(CheckpointError, match=said):
        fit(fill(casvit(**model_info("casvit_xs").config)), state, "casvit_xs")


def test_an_unknown_tensor_is_named_with_its_shape(xs_state: dict[str, Tensor]) -> None:
    state = {**xs_state, "extra.weight": torch.zeros(4, 5)}
    with pytest.raises(CheckpointError, match=r"unknown tensor 'extra.weight' \(4, 5\); "):
        fit(meta_model(model_info("casvit_xs")), state, "casvit_xs")


def test_a_misshaped_tensor_is_named_with_both_shapes(xs_state: dict[str, Tensor]) -> None:
    state = {**xs_state, "patch_embed.0.weight": torch.zeros(24, 1, 3, 3)}
    said = (
        r"tensor 'patch_embed.0.weight' should be \(24, 3, 3, 3\), is \(24, 1, 3, 3\); "
        "the nearest zoo model is 'casvit_xs' itself"
    )
    with pytest.raises(CheckpointError, match=said):
        fit(meta_model(model_info("casvit_xs")), state, "casvit_xs")


def test_nothing_is_loaded_unless_everything_fits(xs_state: dict[str, Tensor]) -> None:
    model = casvit(**model_info("casvit_xs").config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for change in (
        {"norm.weight": torch.zeros(3)},
        {"norm.weight": torch.full((220,), torch.nan)},
        {"norm.weight": torch.zeros(220, dtype=torch.int64)},
    ):
        with pytest.raises(CheckpointError, match=r"norm\.weight"):
            fit(model, {**xs_state, **change}, "casvit_xs")
    assert equal(model.state_dict(), before)


def test_another_models_checkpoint_names_the_model_that_fits(xs_file: Path) -> None:
    for name in ("casvit_s", "deit_tiny", "mobileclip_s0"):
        with pytest.raises(CheckpointError, match=rf"^{name}: .*; it fits 'casvit_xs'$"):
            vitlet.create_model(name, xs_file)


def test_a_strange_checkpoint_is_near_no_model(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no zoo model is near it"):
        vitlet.create_model("deit_tiny", tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["casvit_xs", "deit_tiny"])
def test_another_number_of_classes_is_said(tmp_path: Path, name: str) -> None:
    model = vitlet.create_model(name, num_classes=10)
    save_file(model.state_dict(), tmp_path / "ten.safetensors")
    said = r"'head.weight' should be \(1000, \d+\), is \(10, \d+\).*build with num_classes=10$"
    with pytest.raises(CheckpointError, match=said):
        vitlet.create_model(name, tmp_path / "ten.safetensors")
    vitlet.create_model(name, tmp_path / "ten.safetensors", num_classes=10)


# Keys of the file in tests/keys, and the zoo model that they belong to.
OWNERS = {
    "rcvit_xs": "casvit_xs", "rcvit_xs_nodist": "casvit_xs", "rcvit_s": "casvit_s",
    "rcvit_m_nodist": "casvit_m", "rcvit_t": "casvit_t", "deit_tiny": "deit_tiny",
    "deit_small": "deit_small", "deit_base": "deit_base",
    **{f"mobileclip_{size}": f"mobileclip_{size}" for size in ("s0", "s1", "s2", "b")},
    **{f"mobileclip2_{size}": f"mobileclip2_{size}" for size in ("s0", "s2", "b", "s3", "s4")},
    "mobileclip2_l_14": "mobileclip2_l14", "reparam_mobileclip_s0": "mobileclip_s0",
    "reparam_mobileclip_s2": "mobileclip_s2",
}  # fmt: skip


def _shapes(stem: str) -> dict[str, Tensor]:
    # One number, seen from every place: no memory, and a head bias that is not zero.
    return {key: torch.ones(()).expand(shape) for key, shape, _ in keys(stem)}


@pytest.mark.parametrize("stem", OWNERS)
def test_published_checkpoints_are_recognized(stem: str) -> None:
    name, agree, total = nearest(_shapes(stem))
    assert name == OWNERS[stem] and agree == total


@pytest.mark.parametrize("size", ["s2", "b"])
def test_a_zero_head_bias_tells_the_first_version_in_open_clips_names(size: str) -> None:
    shapes = _shapes(f"mobileclip2_{size}")
    for key in ("visual.trunk.head.fc.bias", "visual.trunk.head.bias"):
        if key in shapes:
            shapes[key] = torch.zeros(512)
    assert nearest(shapes)[0] == f"mobileclip_{size}"
