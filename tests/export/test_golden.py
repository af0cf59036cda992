"""Golden files: small, complete, and from the source as it is given."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vitlet.data.spec import Preprocess
from vitlet.errors import VerificationError
from vitlet.export.cases import Case, normalize, read_cases, write_cases
from vitlet.export.golden import make_golden
from vitlet.export.trace import graphs

SHAPE = (3, 32, 32)


def test_every_kind_of_image_is_there_with_the_sources_answer(
    small_vit: nn.Module, small_spec: Preprocess
) -> None:
    golden = make_golden(small_vit, graphs(small_vit, SHAPE), small_spec)
    cases = {case.name: case for case in read_cases(golden)["model"]}
    assert list(cases) == [
        "real_0", "real_1", "real_2", "real_3", "random_0", "random_1",
        "checkerboard", "ones", "out_of_range", "zeros",
    ]  # fmt: skip
    for case in cases.values():
        given = case.floats(small_spec)
        assert given.shape == (1, *SHAPE) and given.dtype == np.float32
        with torch.no_grad():
            assert np.array_equal(case.output, small_vit(torch.from_numpy(given)).numpy())
    assert (cases["ones"].pixels(small_spec) == 255).all()
    board = cases["checkerboard"].pixels(small_spec)[0, :, :, 0]
    assert set(np.unique(board)) == {0, 255} and (board[::2, ::2] == 0).all()
    low, high = cases["zeros"].floats(small_spec).min(), cases["ones"].floats(small_spec).max()
    wild = cases["out_of_range"].floats(small_spec)
    assert wild.min() < low - 1 and wild.max() > high + 1


def test_real_pictures_are_not_noise(small_vit: nn.Module, small_spec: Preprocess) -> None:
    golden = make_golden(small_vit, graphs(small_vit, SHAPE), small_spec)
    smooth = 0
    for index in range(4):
        picture = golden[f"model/real_{index}/input"][0].astype(np.float64)
        steps = np.abs(np.diff(picture, axis=0)).mean()
        smooth += steps < 0.8 * np.abs(picture - picture.mean()).mean()
    assert smooth >= 3  # one is a field of stars


def test_files_are_small(small_spec: Preprocess) -> None:
    from dataclasses import replace

    class Mean(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    spec = replace(small_spec, size=(256, 256), resize_to=256)
    golden = make_golden(Mean().eval(), graphs(Mean().eval(), (3, 256, 256)), spec)
    assert sum(array.nbytes for array in golden.values()) < 2_000_000


def test_the_model_is_not_changed_and_training_mode_does_not_matter(
    small_conv: nn.Module, small_spec: Preprocess
) -> None:
    made = graphs(small_conv, SHAPE)
    training = copy.deepcopy(small_conv).train()
    before = {k: v.clone() for k, v in training.state_dict().items()}
    one = make_golden(small_conv, made, small_spec)
    two = make_golden(training, made, small_spec)
    assert training.training
    assert all(torch.equal(v, before[k]) for k, v in training.state_dict().items())
    assert all(np.array_equal(one[k], two[k]) for k in one)


def test_texts_cover_the_shortest_and_the_longest(
    small_clip: nn.Module, small_spec: Preprocess
) -> None:
    golden = make_golden(small_clip, graphs(small_clip, SHAPE), small_spec)
    cases = {case.name: case for case in read_cases(golden)["text"]}
    assert {"real_0", "empty", "full", "random_0", "random_1"} <= set(cases)
    lengths = {name: int(case.stored.argmax()) + 1 for name, case in cases.items()}
    assert lengths["empty"] == 2 and lengths["full"] == 77 and 3 < lengths["real_0"] < 77
    assert all(c.output.shape == (1, 10) for c in cases.values())
    lengths_of = [np.linalg.norm(c.output) for c in cases.values()]
    assert np.allclose(lengths_of, 1)


def test_grey_models_get_grey_pictures() -> None:
    spec = Preprocess(size=(28, 28), resize_to=28, mean=(0.3,), std=(0.35,), mode="L")
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 5)).eval()
    golden = make_golden(net, graphs(net, (1, 28, 28)), spec)
    assert golden["model/real_0/input"].shape == (1, 28, 28, 1)


def test_a_source_that_gives_nan_is_refused(small_vit: nn.Module, small_spec: Preprocess) -> None:
    broken = copy.deepcopy(small_vit)
    broken.head.bias[0] = float("nan")
    with pytest.raises(VerificationError, match="not finite"):
        make_golden(broken, graphs(broken, SHAPE), small_spec)


def test_normalize_is_the_definition(small_spec: Preprocess) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    expected = (pixels / 255.0 - np.array(small_spec.mean)) / np.array(small_spec.std)
    assert np.allclose(normalize(pixels, small_spec), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_cases_survive_the_file(small_spec: Preprocess) -> None:
    cases = [
        Case("model", "real_0", np.zeros((1, 4, 4, 3), np.uint8), np.ones((1, 2), np.float32)),
        Case("model", "random_0", np.ones((1, 3, 4, 4), np.float16), np.ones((1, 2), np.float32)),
    ]
    read = read_cases(write_cases(cases))["model"]
    assert [c.name for c in read] == ["real_0", "random_0"]
    assert all(np.array_equal(a.stored, b.stored) for a, b in zip(cases, read, strict=True))
