"""`vitlet demo`: the main job on the embedded model, start to end."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from once import once
from PIL import Image
from run_demo import run_demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One run of the demo: its folder, and its answer as JSON."""
    folder = once(tmp_path_factory, "demo", run_demo)
    return folder / "vitlet-demo", json.loads((folder / "answer.json").read_text("utf-8"))


def test_every_target_is_made_and_proven(done):
    rows = {row["target"]: row for row in done[1]["artifacts"]}
    assert set(rows) == {"onnx", "coreml", "tvm"}
    assert all(row["status"] == "passed" for row in rows.values())
    assert done[1]["verification"]["passed"]


def test_the_embedded_model_classifies_the_bundled_images_well_in_every_engine(done):
    rows = {row["target"]: row for row in done[1]["artifacts"]}
    assert done[1]["images"] == 200
    assert rows["onnx"]["accuracy"] == rows["tvm"]["accuracy"] >= 0.88
    assert rows["coreml"]["accuracy"] is None  # Core ML does not run here, and nothing pretends so
    assert rows["onnx"]["p50_ms"] > 0 and rows["tvm"]["peak_rss"] > 10e6


def test_pictures_and_reports_are_written(done):
    folder, data = done
    for name in ("bench.png", "sheet.png", "sheet-2.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 500
    assert len(list((folder / "images").iterdir())) == 12
    assert folder.parent / data["report"] == folder / "report.html"
    assert (folder / "verification.html").is_file()


def test_a_split_model_survives_the_loss_of_a_worker(done):
    folder, data = done
    act = data["cluster"]
    assert [slot["device"] for slot in act["slots"]] == ["kitchen", "hall", "garage"]
    full, degraded, again = act["stages"]
    assert (full["missing"], degraded["missing"], again["missing"]) == ([], [1], [])
    assert full["accuracy"] == again["accuracy"] >= 0.85 and degraded["accuracy"] >= 0.6
    assert act["same_as_one_process"] and act["recovery_seconds"] > 0
    assert (folder / "cluster" / "plan" / "plan.json").is_file()


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_well_formed_and_needs_no_network(done):
    page = Links()
    page.feed((done[0] / "report.html").read_text())
    assert page.open == []
    outside = [link for link in page.links if not link.startswith("data:image/png;base64,")]
    assert outside == ["verification.html"]
    assert len(page.links) == 4


def test_the_suggested_commands_work_on_what_the_demo_left(done, cli):
    folder, _ = done
    ran = cli("predict", folder / "casvit_fashion.vitlet", folder / "images", "--json")
    assert ran.code == 0
    right = [
        image["predictions"][0]["label"].lower().replace("/", "-").replace(" ", "-")
        in image["file"]
        for image in json.loads(ran.out)["images"]
    ]
    assert sum(right) >= 9
