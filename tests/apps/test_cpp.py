"""`apps/cpp/classify`: the C++ program that runs a bundle with TVM's runtime alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("tvm")
SOURCE = Path(__file__).parents[2] / "apps" / "cpp"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
]


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory):
    """The program, built as its CMake file says without a flag but for quick compilation."""
    build = tmp_path_factory.mktemp("classify")
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(build), "-DCMAKE_BUILD_TYPE=Debug",
         "-DCMAKE_CXX_FLAGS=-Werror", f"-DPython_EXECUTABLE={sys.executable}"],
        ["cmake", "--build", str(build)],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        # Nothing of Python's environment: the program finds its libraries by itself.
        return subprocess.run(
            [str(build / "classify"), *map(str, arguments)],
            capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.defpath},
        )  # fmt: skip

    return run


@pytest.fixture
def picture(pictures: Path, tmp_path: Path) -> Path:
    Image.open(pictures / "a.png").save(tmp_path / "a.ppm")
    return tmp_path / "a.ppm"


@pytest.mark.parametrize("threads", [1, 2])
def test_says_what_predict_says(threads, classify, cli, toy_bundle, picture):
    ran = classify(toy_bundle, picture, threads)
    assert ran.returncode == 0, ran.stderr
    asked = cli("predict", toy_bundle, picture, "--json", "--engine", "tvm", "--topk", 3)
    (image,) = json.loads(asked.out)["images"]
    lines = [line.split(maxsplit=1) for line in ran.stdout.splitlines()]
    assert [label for _, label in lines] == [p["label"] for p in image["predictions"]]
    assert [float(score) for score, _ in lines] == pytest.approx(
        [p["score"] for p in image["predictions"]], abs=2e-6
    )


def test_wrong_use_ends_with_a_sentence(classify, toy_bundle, picture, tmp_path):
    picture.write_bytes(picture.read_bytes()[:100])
    for arguments, message in (
        ((toy_bundle, picture), "a.ppm ends before its last pixel"),
        ((toy_bundle, toy_bundle / "manifest.json"), "is not a binary PGM or PPM file"),
        ((tmp_path, picture), "cannot read"),
        ((toy_bundle, picture, 0), "THREADS must be a number from 1"),
    ):
        ran = classify(*arguments)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert message in ran.stderr


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"cpu_features": [', '"cpu_features": ["amx_tile_of_2040", ', "and uses amx_tile_of_2040"),
        ('"target": "tvm"', '"target": "none"', "the bundle has no TVM library for"),
        ('"labels"', '"lables"', 'the manifest has no "labels"'),
        ("{", "", "the manifest is not JSON"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(
    old, new, message, classify, toy_bundle, picture, tmp_path
):
    text = (toy_bundle / "manifest.json").read_text()
    assert old in text
    changed = tmp_path / "changed.vitlet"
    changed.mkdir()
    for file in toy_bundle.iterdir():
        (changed / file.name).symlink_to(file)
    (changed / "manifest.json").unlink()
    (changed / "manifest.json").write_text(text.replace(old, new, 1))
    ran = classify(changed, picture)
    assert ran.returncode == 1
    assert message in ran.stderr
