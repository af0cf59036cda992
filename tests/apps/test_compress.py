"""`vitlet compress shift-add` from pictures to a proved bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CONFIG = "num_classes=2,dim=16,depth=1,heads=2,patch_size=4,img_size=8,in_chans=1"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Pictures of two grey levels, and what the model expects of them."""
    folder = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(16):
            grey = rng.normal(60 + 120 * number, 5, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / "data" / name / f"{index}.png")
    spec = {"size": [8, 8], "resize_to": 8, "mean": [0.5], "std": [0.25], "mode": "L"}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def converted(cli, place: Path, output: Path, *more: str):
    return cli(
        "compress", "shift-add", "deit_tiny", "--config", CONFIG, "--random-weights",
        "--preprocess", str(place / "spec.json"), "--data", str(place / "data"),
        "-o", str(output), *more,
    )  # fmt: skip


def test_converts_trains_and_proves(cli, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.vitlet"
    times = tmp_path / "experts.json"
    sizes = [{"in": 16, "out": 64, "tokens": 5, "dense_us": 2.0, "shift_us": 1.0},
             {"in": 64, "out": 16, "tokens": 5, "dense_us": 2.0, "shift_us": 1.0}]  # fmt: skip
    facts = {"format": "vitlet-experts", "version": 1, "machine": {}, "threads": 1}
    times.write_text(json.dumps({**facts, "layers": sizes}))
    more = ("--linear", "moe", "--epochs", "2", "--batch", "8", "--lr", "3e-3",
            "--latency", str(times), "--plot", str(tmp_path / "run.png"))  # fmt: skip
    ran = converted(cli, place, output, *more, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert {change["now"] for change in told["changes"]} == {"binary attention", "mixture"}
    assert "epoch 2 of 2" in ran.err and (output / "model.onnx").is_file()
    manifest = json.loads((output / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"]
    assert artifact["verification"]["status"] == "passed"
    assert set(artifact["custom_ops"]) == {"BinaryLinearAttention", "ShiftLinear"}
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    journal = (tmp_path / "small.vitlet.work" / "journal.jsonl").read_text().splitlines()
    assert json.loads(journal[0])["wanted_share"] == round(1 / 3, 4)
    assert manifest["labels"] == ["dark", "light"]
    # The same call takes the finished training.
    again = converted(cli, place, output, *more, "--force")
    assert again.code == 0 and "epoch" not in again.err and "mixture" in again.out
    picture = str(place / "data" / "light" / "0.png")
    assert "light" in cli("predict", str(output), picture).out


def test_what_cannot_be_converted_is_refused_before_anything_is_written(
    cli, place: Path, tmp_path: Path
) -> None:
    output = tmp_path / "no.vitlet"
    for more, code, text in (
        (("--attention", "hash"), 2, "attention must be binary"),
        (("--linear", "shift", "--layers", "encoder.*"), 2, "no linear layer"),
        (("--attention", "unchanged"), 2, "nothing to convert"),
        (("--linear", "shift", "--latency", "times.json"), 2, "--latency is for --linear moe"),
        (("--linear", "moe", "--latency", "absent.json"), 2, "cannot read absent.json"),
        (("--plot", "run.bmp"), 2, "--plot must end in .png"),
        (("--plot", "run.png", "--epochs", "0"), 2, "--plot draws the training"),
    ):
        ran = converted(cli, place, output, *more)
        assert ran.code == code and text in ran.err
        assert not output.exists()
