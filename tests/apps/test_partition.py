"""`vitlet partition` from a device file to a plan, and `bench --device-profile`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitlet.partition.devices import Device, read_devices, write_devices

CONFIG = "num_classes=4,dim=16,depth=2,heads=4,patch_size=4,img_size=8,in_chans=1"
NAMES = ("ant", "bee", "cat", "dog")
PLAN = ("partition", "plan", "deit_tiny", "--config", CONFIG)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A device file, and pictures whose classes are four grey levels."""
    folder = tmp_path_factory.mktemp("partition")
    devices = [Device(name, 10_000_000, 1e9) for name in ("one", "two")]
    write_devices(devices, folder / "devices.toml")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate(NAMES):
            (folder / "data" / part / name).mkdir(parents=True)
            for index in range(8):
                grey = rng.normal(60 * number + 30, 5, (8, 8)).clip(0, 255).astype(np.uint8)
                Image.fromarray(grey).save(folder / "data" / part / name / f"{index}.png")
    spec = {"size": [8, 8], "resize_to": 8, "mean": [0.5], "std": [0.25], "mode": "L"}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def planned(cli, place: Path, work: Path, *more: str):
    return cli(
        *PLAN, "--random-weights", "--devices", str(place / "devices.toml"),
        "--data", str(place / "data"), "--preprocess", str(place / "spec.json"),
        "-o", str(work), *more,
    )  # fmt: skip


@pytest.mark.slow
def test_the_verbs_follow_each_other(cli, place, tmp_path):
    work, plan, data = str(tmp_path / "work"), str(tmp_path / "plan"), str(place / "data")
    ran = planned(cli, place, tmp_path / "work", "--explain", "--keep", "2")
    assert ran.code == 0 and "x smaller" in ran.out and "slot 0 on one: takes" in ran.out
    assert f"vitlet partition train {work} --data {data}" in ran.err
    assert "random weights" in ran.err
    early = cli("partition", "export", work, "-o", plan)
    assert early.code == 2 and "planned and not trained" in early.err
    options = ("--epochs", "1", "--short-epochs", "0", "--fusion-epochs", "1", "--batch", "8")
    ran = cli("partition", "train", work, "--data", data, *options)
    assert ran.code == 0 and "held-out pictures" in ran.out and "slot-00 final: epoch 1" in ran.err
    ran = cli("partition", "export", work, "-o", plan, "--json")
    made = json.loads(ran.out)
    assert ran.code == 0 and [slot["devices"] for slot in made["slots"]] == [["one"], ["two"]]
    ran = cli("partition", "evaluate", plan, "--data", data, "--work", work,
              "--duration", "10ms", "--limit", "12", "--plot", str(tmp_path / "x.svg"),
              "--json")  # fmt: skip
    found = json.loads(ran.out)
    assert ran.code == 0 and found["split"]["pictures"] == 12 and found["labels"] == list(NAMES)
    assert found["full"]["bytes"] > found["per_device"]["bytes"]
    assert (tmp_path / "x.svg").read_text().count("<path") > 10
    for options, why in ((("--to", "onnx", "--triple", "x"), "--to tvm"), (("--to", "q"), "'q'")):
        ran = cli("partition", "export", work, "-o", str(tmp_path / "other"), *options)
        assert ran.code == 2 and why in ran.err and not (tmp_path / "other").exists()
    ran = cli("partition", "evaluate", plan, "--data", data, "--plot", "x.jpg")
    assert ran.code == 2 and "--plot takes" in ran.err
    (tmp_path / "plan" / "fusion.vitlet" / "fusion.onnx").write_bytes(b"x")
    assert cli("partition", "evaluate", plan, "--data", data).code == 6


def test_a_plan_as_json_has_sizes_per_device_and_in_total(cli, place, tmp_path):
    ran = planned(cli, place, tmp_path / "work", "--json", "--slots", "2", "--replicas", "1")
    data = json.loads(ran.out)
    assert ran.code == 0 and len(data["sub_models"]) == 2
    total = sum(one["bytes"] for one in data["sub_models"])
    assert data["total"]["bytes"] == total and data["per_device"]["bytes"] <= total
    assert all(len(one["devices"]) == 2 for one in data["sub_models"])
    assert sorted(c for one in data["sub_models"] for c in one["classes"]) == sorted(NAMES)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--slots", "5"), 2, "5 sub-models for 4 classes"),
        (("--slots", "3"), 2, "--assign makespan"),
        (("--keep", "9"), 2, "keeps 1 to 4 heads"),
        (("--total", "10"), 2, "the limit is 10 B"),
        (("--total", "much"), 2, "--total takes a size such as 180MB"),
        (("--deadline", "soon"), 2, "--deadline takes a time"),
        (("--classes", "best"), 2, "balanced-random, confusable-together"),
        (("--assign", "best"), 2, "greedy or makespan"),
        (("--prune", "best"), 2, "per-model or global"),
        (("--data", "nowhere"), 2, "nowhere does not exist"),
        (("--preprocess", "nowhere"), 2, "nowhere does not exist"),
        (("--devices", "nowhere.toml"), 2, "cannot read the device file"),
        (("--config", "num_classes=9"), 2, "gives 9 classes, and the data"),
        (("--config", "dim=wide"), 2, "--config takes NAME=NUMBER"),
    ],
)
def test_what_cannot_work_is_one_line(cli, place, tmp_path, options, code, message):
    ran = planned(cli, place, tmp_path / "work", *options)
    assert ran.code == code and message in " ".join(ran.err.split())
    assert not (tmp_path / "work").exists()


def test_only_a_plain_vit_with_weights_is_split(cli, place, tmp_path):
    where = ("--devices", str(place / "devices.toml"), "-o", str(tmp_path / "work"))
    ran = cli("partition", "plan", "deit_tiny", *where)
    assert ran.code == 2 and "--random-weights" in ran.err
    ran = cli("partition", "plan", "casvit_fashion", *where)
    assert ran.code == 3 and "plain ViT" in ran.err
    ran = cli("partition", "train", str(tmp_path), "--data", str(place / "data"))
    assert ran.code == 2 and "vitlet partition plan" in ran.err


def test_this_machine_becomes_a_device(cli, tmp_path):
    file = tmp_path / "devices.toml"
    write_devices([Device("me", 1, 1.0, link_rate=5.0), Device("other", 2, 2.0)], file)
    profile = ("bench", "--device-profile", str(file), "--duration", "50ms", "--device-name")
    ran = cli(*profile, "me", "--json")
    data = json.loads(ran.out)
    assert ran.code == 0 and data["replaced"] and data["device"]["speed"] > 1e6
    me, other = read_devices(file)
    assert me.speed == data["device"]["speed"] and me.memory > 1_000_000
    assert me.link_rate == 5.0 and other == Device("other", 2, 2.0)  # what is not measured is kept
    ran = cli(*profile, "third")
    assert ran.code == 0 and "MAC/s" in ran.out and len(read_devices(file)) == 3
    file.write_text("[[devices]]\nname = 3\n")
    assert cli(*profile, "me").code == 2


def test_bench_measures_a_bundle_or_the_machine(cli, tmp_path):
    assert cli("bench").code == 2
    assert cli("bench", "x.vitlet", "--device-profile", str(tmp_path / "d.toml")).code == 2
    assert cli("bench", "x.vitlet", "--device-name", "me").code == 2
