"""Bad input at the command line: one clear line, the documented exit code, nothing half-written."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vitlet.runtime.safetensors import save_file


def refused(ran, code=6):
    assert (ran.code, ran.out) == (code, ""), ran.err
    *steps, last = ran.err.splitlines()
    assert last.startswith("error: "), ran.err
    # On a busy machine a step may take the second from which on it is told.
    assert all(re.fullmatch(r"[\w ./-]+: [\d.]+ m?s", step) for step in steps), ran.err
    return last + "\n"


@pytest.fixture
def copy(toy_bundle, tmp_path):
    return Path(shutil.copytree(toy_bundle, tmp_path / "toy.vitlet"))


def with_climbing_path(bundle):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../secret"] = manifest["files"]["model.onnx"]
    path.write_text(json.dumps(manifest))


def with_link(bundle):
    (bundle / "model.onnx").rename(bundle.parent / "elsewhere.onnx")
    (bundle / "model.onnx").symlink_to(bundle.parent / "elsewhere.onnx")


def with_cut_file(bundle):
    os.truncate(bundle / "model.onnx", 1000)


def with_flipped_bit(bundle):
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[-100] ^= 1
    (bundle / "model.onnx").write_bytes(data)


def with_extra_file(bundle):
    (bundle / "extra.sh").write_text("echo")


def with_broken_manifest(bundle):
    (bundle / "manifest.json").write_text('{"schema": 1')


def of_the_future(bundle):
    path = bundle / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))


def without_manifest(bundle):
    (bundle / "manifest.json").unlink()


@pytest.mark.parametrize("verb", ["predict", "bench", "verify", "inspect", "info"])
@pytest.mark.parametrize(
    "damage",
    [
        with_climbing_path, with_link, with_cut_file, with_flipped_bit, with_extra_file,
        with_broken_manifest, of_the_future, without_manifest,
    ],
)  # fmt: skip
def test_a_bundle_that_is_damaged_or_unsafe_is_refused_by_every_verb(
    cli, copy, verb, damage, pictures
):
    damage(copy)
    refused(cli(verb, copy, *([pictures / "a.png"] if verb == "predict" else [])))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize(
    "argv",
    [
        ["export", "casvit_xs", "--to", "onnx", "--weights", "{}"],
        ["export", "{}", "--to", "onnx"],
        ["info", "{}"],
        ["inspect", "{}"],
    ],
)
@pytest.mark.parametrize("kind", ["code", "cut", "empty", "text"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bad_checkpoint_is_refused_and_never_run(cli, tmp_path, monkeypatch, argv, kind, suffix):
    monkeypatch.chdir(tmp_path)
    path = Path(f"bad{suffix}")
    if kind == "code":
        path.write_bytes(pickle.dumps({"model": Bomb()}))
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "cut" and suffix == ".safetensors":
        save_file({"w": np.zeros(1000, np.float32)}, path)
        os.truncate(path, 2000)
    elif kind == "cut":
        import torch

        torch.save({"w": torch.zeros(1000)}, path)
        os.truncate(path, 2000)
    else:
        path.touch()
    message = refused(cli(*(word.format(path) for word in argv)))
    assert str(path) in message
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_truncated_onnx_file_is_refused_by_verify(cli, toy_bundle, tmp_path):
    path = tmp_path / "cut.onnx"
    data = (toy_bundle / "model.onnx").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    refused(cli("verify", path, "--against", "casvit_fashion"))


WITHOUT = (
    "import sys\n"
    "for name in sys.argv[1].split(','): sys.modules[name] = None\n"
    "from vitlet.apps.cli import main\n"
    "sys.exit(main(sys.argv[2:]))\n"
)


@pytest.mark.parametrize(
    ("missing", "argv", "extra"),
    [
        ("torch", ["export", "casvit_fashion", "--to", "onnx"], "torch"),
        ("onnx", ["export", "casvit_fashion", "--to", "onnx"], "onnx"),
        ("coremltools", ["export", "casvit_fashion", "--to", "coreml"], "coreml"),
        ("tvm", ["export", "casvit_fashion", "--to", "tvm"], "tvm"),
        ("onnx", ["inspect", "{bundle}/model.onnx"], "onnx"),
        ("coremltools", ["inspect", "{bundle}/model.mlpackage"], "coreml"),
        ("PIL", ["predict", "{bundle}", "{pictures}"], "runtime"),
        ("onnxruntime,tvm_ffi", ["predict", "{bundle}", "{pictures}"], "runtime"),
        ("matplotlib", ["bench", "{bundle}", "--plot", "b.png"], "report"),
        ("matplotlib", ["demo"], "report"),
    ],
)
def test_a_missing_package_is_named_with_its_pip_command(
    process, toy_bundle, pictures, tmp_path, missing, argv, extra
):
    words = [word.format(bundle=toy_bundle, pictures=pictures) for word in argv]
    done = process(missing, *words, "-q", code=WITHOUT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (5, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert f'pip install "vitlet[{extra}]"' in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "pictures"] == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=1m"):
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "place"),
    [("onnx", "out"), ("coreml", "out"), ("tvm", "out"), ("coreml", "tmp"), ("tvm", "tmp")],
)
def test_an_export_to_a_full_disk_leaves_nothing_behind(
    process, small_disk, tmp_path, own_source, target, place
):
    (tmp_path / "own.py").write_text(own_source(50_000))
    out = (small_disk if place == "out" else tmp_path) / "own.vitlet"
    env = {"TMPDIR": str(small_disk)} if place == "tmp" else {}
    argv = ["export", "own:with_info", "--to", target, "-o", out, "-q"]
    done = process(*argv, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and "bug" not in done.stderr
    # torch makes an empty cache folder wherever TMPDIR is.
    assert [e for e in small_disk.rglob("*") if not e.name.startswith("torchinductor_")] == []
    assert {entry.name for entry in tmp_path.iterdir()} <= {"own.py", "__pycache__", "disk"}


def limited_to_4_kib():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_tables_and_pictures_on_a_full_disk_leave_nothing_behind(
    process, toy_bundle, pictures, tmp_path
):
    folder = tmp_path / "out"
    argv = ["--csv", folder / "t.csv", "--sheet", folder / "s.png"]
    done = process("predict", toy_bundle, pictures, "-q", *argv, preexec_fn=limited_to_4_kib)
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr and "s.png" in done.stderr
    assert [entry.name for entry in folder.iterdir()] == ["t.csv"]
