"""Plans survive the disk and the network, and nothing changed is accepted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_plan import CLASSES, LABELS, WIDTHS, tiny_modules, tiny_plan

from vitlet.errors import BundleError, UsageError
from vitlet.partition.plan import PLAN, Plan, load_plan, write_plan
from vitlet.runtime.ort import OrtEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "tiny"
    tiny_plan(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    load_plan(folder).save(tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder: Path, change: Any) -> None:
    """Change plan.json and set its hash right, so that only `change` is wrong."""
    import hashlib

    data = json.loads((folder / PLAN).read_text())
    change(data)
    rest = {key: value for key, value in data.items() if key != "hash"}
    data["hash"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / PLAN).write_text(json.dumps(data))


def test_a_plan_is_the_same_after_the_disk(folder: Path) -> None:
    plan = load_plan(folder)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert [slot.classes for slot in plan.slots] == list(CLASSES)
    assert plan.covered_classes([0, 2]) == (0, 2, 3, 5, 6)
    assert [slot.index for slot in plan.slots_of("gamma")] == [0, 2]


def test_its_bundles_compute_what_the_modules_do(folder: Path) -> None:
    plan = load_plan(folder)
    modules, fusion = tiny_modules()
    image = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    features = []
    for index, module in enumerate(modules):
        engine = OrtEngine(plan.slot_bundle(index).file("features.onnx"))
        got = engine.run({"image": image.numpy()})["features"]
        np.testing.assert_allclose(got, module(image).detach().numpy(), rtol=1e-3, atol=1e-4)
        features.append(got)
    joined = np.concatenate(features, axis=1)
    engine = OrtEngine(plan.fusion_bundle().file("fusion.onnx"))
    present = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], np.float32)
    got = engine.run({"features": joined, "present": present})["logits"]
    wanted = fusion(torch.from_numpy(joined), torch.from_numpy(present)).detach().numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    assert got.shape == (5, len(LABELS))
    # What an absent slot sends changes nothing.
    joined[1, : WIDTHS[0]] = 1e3
    again = engine.run({"features": joined, "present": present})["logits"]
    np.testing.assert_allclose(again[1], got[1], rtol=1e-5, atol=1e-5)


def test_a_changed_file_in_a_bundle_is_refused(copy: Path) -> None:
    onnx = copy / "slot-01.vitlet" / "features.onnx"
    data = bytearray(onnx.read_bytes())
    data[100] ^= 1
    onnx.write_bytes(data)
    with pytest.raises(BundleError, match=r"features\.onnx was changed"):
        load_plan(copy)
    load_plan(copy, slots=[0, 2])  # a worker looks at its own slots


def test_another_bundle_in_a_slot_is_refused(copy: Path) -> None:
    first, second = copy / "slot-00.vitlet", copy / "slot-01.vitlet"
    first.rename(copy / "kept")
    second.rename(first)
    (copy / "kept").rename(second)
    with pytest.raises(BundleError, match="was changed after the plan was made"):
        load_plan(copy)


def test_a_linked_bundle_is_refused(copy: Path) -> None:
    (copy / "slot-00.vitlet").rename(copy / "elsewhere")
    (copy / "slot-00.vitlet").symlink_to(copy / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        load_plan(copy)


def test_a_missing_bundle_is_named(copy: Path) -> None:
    import shutil

    shutil.rmtree(copy / "fusion.vitlet")
    with pytest.raises(BundleError, match=r"fusion\.vitlet does not exist"):
        load_plan(copy)
    load_plan(copy, fusion=False)


def test_an_edited_plan_is_refused(copy: Path) -> None:
    text = (copy / PLAN).read_text()
    (copy / PLAN).write_text(text.replace('"temperature": 1.5', '"temperature": 9.5'))
    with pytest.raises(BundleError, match="changed after it was made"):
        load_plan(copy)


def _set(path: str, value: Any) -> Any:
    def change(data: Any) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in parents:
            data = data[part]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("schema", 2), "has schema 2, this vitlet reads 1"),
        (_set("slots.0.bundle", "../slot-00.vitlet"), "unsafe path"),
        (_set("slots.0.bundle", "/etc"), "unsafe path"),
        (_set("fusion.bundle", ".."), "unsafe path"),
        (_set("slots.0.classes", [0, 3]), "exactly one slot"),
        (_set("slots.0.classes", [0, 3, 6, 6]), "exactly one slot"),
        (_set("slots.1.devices", ["omega"]), "devices that are unknown"),
        (_set("slots.1.index", 2), "numbered 0, 1"),
        (_set("slots.1.bundle", "slot-00.vitlet"), "share one bundle"),
        (_set("slots.1.features", 13), "does not fit the plan"),
        (_set("slots.1.features", True), "must be a whole number"),
        (_set("slots.1.latency", -1), "at least 0"),
        (_set("slots.1.sha256", "0" * 63), "no SHA-256"),
        (_set("slots.1.surprise", 1), "unknown field 'surprise'"),
        (_set("calibration.temperature", 0), "greater than 0"),
        (_set("labels", []), "must be class names"),
        (_set("devices.0.memory", "much"), "512 MB"),
        (_set("preprocess", []), "must be a table"),
        (_set("slots", 7), "must be a list"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(copy: Path, change: Any, message: str) -> None:
    rewrite(copy, change)
    with pytest.raises(BundleError, match=message) as caught:
        load_plan(copy)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1, "schema": 1}', "{", '{"schema": NaN}'])
def test_a_damaged_plan_is_refused(copy: Path, text: str) -> None:
    (copy / PLAN).write_text(text)
    with pytest.raises(BundleError):
        load_plan(copy)


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"plan\.json is not there"):
        load_plan(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        load_plan(tmp_path / "none")


def test_the_hash_covers_every_part(folder: Path) -> None:
    plan = load_plan(folder)
    others = [
        replace(plan, calibration={"temperature": 2.0}),
        replace(plan, labels=tuple(reversed(plan.labels))),
        replace(plan, slots=(replace(plan.slots[0], sha256="0" * 64), *plan.slots[1:])),
        replace(plan, devices=plan.devices[:2]),
        replace(plan, preprocess=replace(plan.preprocess, mean=(0.4,))),
        replace(plan, fusion=replace(plan.fusion, macs=1)),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 7


def test_a_plan_that_contradicts_itself_is_not_written(folder: Path, tmp_path: Path) -> None:
    plan = load_plan(folder)
    with pytest.raises(UsageError, match="exactly one slot"):
        write_plan(replace(plan, slots=plan.slots[:2]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plan_is_not_saved_over_something(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        load_plan(folder).save(tmp_path)


def test_opening_a_plan_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from vitlet.partition.plan import load_plan\n"
        f"print(len(load_plan({str(folder)!r}).slots))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
