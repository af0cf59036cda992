"""Fine-tuning: it helps, it resumes to the bit, and mixtures come to the share they should."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vitlet
from vitlet.compress.finetune import STAGES, FineTuning, finetune
from vitlet.compress.journal_plot import plot_journal, read_journal
from vitlet.compress.shift_add import shift_add
from vitlet.compress.training import Recipe
from vitlet.data.labelled import LabelledImages
from vitlet.data.spec import Preprocess
from vitlet.errors import CorruptInputError, TrainingError, UsageError

FASHION = Path(vitlet.__file__).parent / "data/assets/fashion_test.npz"
SHORT = FineTuning(Recipe(epochs=3, batch=32, lr=1e-3, average=0.0), smoothing=0.0)


@pytest.fixture(scope="module")
def data() -> LabelledImages:
    kept = np.load(FASHION)
    names = tuple(str(n) for n in range(10))
    return LabelledImages(kept["images"][..., None], kept["labels"], names)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(0)
    return vitlet.create_model("vit_fashion", depth=2, dim=48, heads=2)


def losses(folder: Path) -> list[float]:
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


class Stop(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_bits(
    original: nn.Module, data: LabelledImages, tmp_path: Path
) -> None:
    model, _ = shift_add(original, linear="moe")
    whole = finetune(model, data, SHORT, work=tmp_path / "whole", teacher=original)

    def stop(entry: dict[str, object]) -> None:
        if entry["epoch"] == 2:
            raise Stop

    with pytest.raises(Stop):
        finetune(model, data, SHORT, work=tmp_path / "cut", teacher=original, progress=stop)
    again = finetune(model, data, SHORT, work=tmp_path / "cut", teacher=original)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    found = losses(tmp_path / "whole")
    assert len(found) == 3 and found[2] < found[0]
    finished = finetune(model, data, SHORT, work=tmp_path / "cut", teacher=original)
    assert torch.equal(finished.head.weight, again.head.weight)  # type: ignore[union-attr, arg-type]
    assert len(losses(tmp_path / "cut")) == 4  # epoch 2 came twice, nothing was trained after


def test_the_argument_is_not_changed_and_the_journal_tells_shares(
    original: nn.Module, data: LabelledImages, tmp_path: Path
) -> None:
    model, _ = shift_add(original, attention="unchanged", linear="moe", latency=(3.0, 1.0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = replace(SHORT, recipe=replace(SHORT.recipe, epochs=1))
    told: list[dict[str, object]] = []
    finetune(model, data, one, work=tmp_path, progress=told.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert 0 <= told[0]["dense_share"] <= 1  # type: ignore[operator]


def test_a_teacher_that_is_told_about_its_blocks_leads_further(
    original: nn.Module, data: LabelledImages, tmp_path: Path
) -> None:
    model, _ = shift_add(original)
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    gaps = []
    for features in (0.0, 8.0):
        settings = replace(SHORT, features=features, limit=64)
        trained = finetune(model, data, settings, work=tmp_path / str(features), teacher=original)
        with torch.no_grad():
            wanted = original.blocks[-1](original._tokens(images))  # type: ignore[index, operator, union-attr]
            found = trained.blocks[-1](trained._tokens(images))  # type: ignore[index, operator, union-attr]
        gaps.append(float((found - wanted).norm()))
    assert gaps[1] < 0.9 * gaps[0]
    for one in (original, trained):  # nothing follows them any more, or keeps what they gave
        assert not any(part._forward_hooks for part in one.modules())


def test_blocks_are_compared_only_where_there_are_some(
    data: LabelledImages, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    spec = Preprocess((28, 28), resize_to=28, mean=(0.5,), std=(0.5,), mode="L")
    settings = replace(SHORT, features=1.0)
    with pytest.raises(UsageError, match="the model has none"):
        finetune(model, data, settings, work=tmp_path, teacher=model, preprocess=spec)


def test_answers_that_are_kept_teach_the_same(
    original: nn.Module, data: LabelledImages, tmp_path: Path
) -> None:
    model, _ = shift_add(original)
    settings = replace(SHORT, distillation=1.0, mirror=True)
    data = data.take(range(64))
    made = [
        finetune(
            model, data, settings, work=tmp_path / str(shared), teacher=original, shared=shared
        )
        for shared in (None, tmp_path)
    ]
    assert len(list(tmp_path.glob("answers-*.safetensors"))) == 1
    for name, tensor in made[0].state_dict().items():
        torch.testing.assert_close(tensor, made[1].state_dict()[name], rtol=0, atol=2e-3)


def test_a_journal_is_drawn(original: nn.Module, data: LabelledImages, tmp_path: Path) -> None:
    model, _ = shift_add(original, attention="unchanged", linear="moe", latency=(3.0, 1.0))
    settings = replace(SHORT, recipe=replace(SHORT.recipe, epochs=2), limit=32)
    finetune(model, data, settings, work=tmp_path)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], *lines]) + "\n")  # as after a kill
    entries = read_journal(journal)
    assert [entry["epoch"] for entry in entries] == [1, 2]
    assert entries[0]["wanted_share"] == 0.25
    plot_journal(journal, tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text()
    assert "<svg" in drawn and len(drawn) > 5000
    journal.write_text('{"epoch": 1}\n')
    with pytest.raises(CorruptInputError, match="line 1"):
        read_journal(journal)
    journal.write_text("")
    with pytest.raises(UsageError, match="no epoch yet"):
        plot_journal(journal, tmp_path / "run.svg")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_epoch(
    original: nn.Module, data: LabelledImages, tmp_path: Path
) -> None:
    model, _ = shift_add(original)
    with torch.no_grad():
        model.head.bias[0] = torch.inf  # type: ignore[union-attr, operator, index]
    with pytest.raises(TrainingError, match="epoch 1, step 1"):
        finetune(model, data, SHORT, work=tmp_path)


def test_bad_input_is_refused(original: nn.Module, data: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="recipe must be one of shiftadd-attention"):
        finetune(original, data, "fast", work=tmp_path)  # type: ignore[arg-type]
    fewer = LabelledImages(data.images, data.labels % 3, ("a", "b", "c"))
    with pytest.raises(UsageError, match="data have 3 classes"):
        finetune(original, fewer, SHORT, work=tmp_path)
    with pytest.raises(UsageError, match="give preprocess"):
        finetune(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), data, SHORT, work=tmp_path)
    with pytest.raises(UsageError, match="smoothing"):
        FineTuning(Recipe(epochs=1), smoothing=1.5)
    with pytest.raises(UsageError, match="limit"):
        FineTuning(Recipe(epochs=1), limit=0)
    assert set(STAGES) == {"shiftadd-attention", "shiftadd-moe"}
