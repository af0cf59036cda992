"""`vitlet predict`: every image has an answer or a reason, and torch is never imported."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image


def test_every_image_of_a_folder_is_classified(cli, toy_bundle, pictures):
    ran = cli("predict", toy_bundle, pictures, "--json", "--topk", 2)
    assert ran.code == 0
    data = json.loads(ran.out)
    assert [entry["file"].split("/")[-1] for entry in data["images"]] == [
        "a.png",
        "b.jpg",
        "c.webp",
    ]
    assert all(len(entry["predictions"]) == 2 for entry in data["images"])
    assert data["failed"] == []
    assert "1 other file" in ran.err


def test_both_engines_and_all_batch_sizes_say_the_same(cli, toy_bundle, pictures):
    answers = []
    for engine in ("ort", "tvm"):
        for batch in (1, 2, 8):
            ran = cli(
                "predict", toy_bundle, pictures, "--json", "--engine", engine, "--batch", batch
            )
            images = json.loads(ran.out)["images"]
            answers.append([[p["score"] for p in entry["predictions"]] for entry in images])
    assert np.ptp(np.array(answers), axis=0).max() < 1e-5


def test_the_table_shows_names_labels_and_probabilities(cli, toy_bundle, pictures):
    ran = cli("predict", toy_bundle, pictures / "a.png")
    lines = ran.out.splitlines()
    assert len(lines) == 5
    assert "a.png" in lines[0] and " %" in lines[0]
    assert max(map(len, lines)) <= 80


def test_an_unreadable_image_is_told_and_the_others_go_on(cli, toy_bundle, pictures):
    (pictures / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 truncated")
    ran = cli("predict", toy_bundle, pictures, "--json")
    assert ran.code == 6
    data = json.loads(ran.out)
    assert len(data["images"]) == 2
    assert [entry["file"].endswith("b.jpg") for entry in data["failed"]] == [True]
    assert "error: 1 image of 3 could not be read" in ran.err.splitlines()[-1]


def test_the_csv_has_a_row_per_guess_and_one_per_failure(cli, toy_bundle, pictures, tmp_path):
    (pictures / "c.webp").write_bytes(b"")
    ran = cli("predict", toy_bundle, pictures, "--csv", tmp_path / "t.csv", "--topk", 3, "-q")
    assert ran.code == 6
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "1", "2", "3", ""]
    assert all(0 <= float(row["score"]) <= 1 for row in rows[:6])
    assert rows[6]["error"]


def test_the_contact_sheet_is_a_picture(cli, toy_bundle, pictures, tmp_path):
    ran = cli("predict", toy_bundle, pictures, "--sheet", tmp_path / "s.png")
    assert ran.code == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 300
    assert "s.png" in ran.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope.vitlet", "a.png"], "does not exist"),
        (["{bundle}", "nope.png"], "does not exist"),
        (["{bundle}", "{pictures}", "--sheet", "s.txt"], "--sheet must end in"),
        (["{bundle}", "{pictures}", "--engine", "nope"], "--engine"),
        (["{bundle}", "{pictures}", "--topk", "0"], "--topk"),
        (["{bundle}", "{pictures}", "--prompts", "a cat"], "--prompts means nothing"),
        (["{bundle}/model.onnx", "{pictures}"], "bare file"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(cli, toy_bundle, pictures, argv, words):
    ran = cli("predict", *(w.format(bundle=toy_bundle, pictures=pictures) for w in argv), "-q")
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1 and words in ran.err


def test_a_core_ml_program_gives_the_same_answers_where_it_is_asked_for(cli, toy_bundle, pictures):
    ran = cli("predict", toy_bundle, pictures, "--engine", "coreml", "--json")
    assert ran.code == 0 and "time and memory are not a phone's" in ran.err
    found, usual = (
        json.loads(ran.out),
        json.loads(cli("predict", toy_bundle, pictures, "--json").out),
    )
    assert found["engine"].startswith("coreml") and usual["engine"].startswith("onnxruntime")
    for ours, theirs in zip(found["images"], usual["images"], strict=True):
        scores = [{g["label"]: g["score"] for g in i["predictions"]} for i in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=2e-3)


def test_a_bare_core_ml_package_has_no_labels(cli, toy_bundle, pictures):
    ran = cli("predict", toy_bundle / "model.mlpackage", pictures, "--engine", "coreml", "-q")
    assert (ran.code, ran.out) == (2, "") and "give its bundle" in ran.err


@pytest.mark.parametrize("engine", ["ort", "tvm"])
def test_torch_is_never_imported(process, toy_bundle, pictures, tmp_path, engine):
    code = (
        "import sys\n"
        "from vitlet.apps.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'onnx', 'coremltools', 'tvm', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
        "sys.exit(code)\n"
    )
    extra = ["--csv", tmp_path / "t.csv", "--sheet", tmp_path / "s.png", "--engine", engine]
    done = process("predict", toy_bundle, pictures, *extra, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def scores(ran):
    assert ran.code == 0, ran.err
    return [
        {guess["label"]: guess["score"] for guess in entry["predictions"]}
        for entry in json.loads(ran.out)["images"]
    ]


def test_prompts_at_prediction_say_the_same_as_prompts_baked_in(cli, clip_bundles, pictures):
    expected = scores(cli("predict", clip_bundles[0], pictures, "--json"))
    for bundle in clip_bundles:
        ran = cli("predict", bundle, pictures, "--json", "--prompts", "a cow, a dog,a cat")
        for ours, theirs in zip(scores(ran), expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_clip_bundle_without_prompts_asks_for_them(cli, clip_bundles, pictures):
    ran = cli("predict", clip_bundles[1], pictures)
    assert ran.code == 2 and "--prompts" in ran.err
    ran = cli("predict", clip_bundles[1], pictures, "--prompts", " , ")
    assert ran.code == 2 and "--prompts" in ran.err
