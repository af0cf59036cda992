import json
import os
from pathlib import Path

import pytest

from vitlet.errors import BundleError
from vitlet.runtime.bundle import open_bundle, safe_name
from vitlet.runtime.manifest import MANIFEST


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps(data))


def test_opens_a_sound_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model["name"] == "tiny"
    assert opened.file("model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()


def test_refuses_a_changed_byte_anywhere(bundle: Path) -> None:
    for name in ("model.onnx", "golden.safetensors"):
        path = bundle / name
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(BundleError, match="was changed"):
                open_bundle(bundle)
        path.write_bytes(good)
    open_bundle(bundle)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_refuses_a_file_that_was_cut(bundle: Path, keep: int) -> None:
    path = bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        open_bundle(bundle)


def test_refuses_a_file_that_grew(bundle: Path) -> None:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        open_bundle(bundle)


def test_refuses_a_missing_file(bundle: Path) -> None:
    (bundle / "golden.safetensors").unlink()
    with pytest.raises(BundleError, match=r"golden\.safetensors is not there"):
        open_bundle(bundle)


@pytest.mark.parametrize("extra", ["readme.txt", "folder/inner", "empty/"])
def test_refuses_what_the_manifest_does_not_list(bundle: Path, extra: str) -> None:
    path = bundle / extra
    (path if extra.endswith("/") else path.parent).mkdir(exist_ok=True)
    if not extra.endswith("/"):
        path.write_text("hello")
    with pytest.raises(BundleError, match="manifest"):
        open_bundle(bundle)


def test_refuses_a_link_to_the_very_same_bytes(bundle: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", MANIFEST):
        path = bundle / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
        with pytest.raises(BundleError, match="link"):
            open_bundle(bundle)
        path.unlink()
        (tmp_path / name).rename(path)
    open_bundle(bundle)


def test_refuses_a_linked_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (bundle / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="link"):
        open_bundle(bundle)


def test_refuses_a_pipe_without_hanging(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    with pytest.raises(BundleError, match="not a plain file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "./a",
        "a/.",
        "",
        "a\\b",
        "c:x",
        "a\0b",
        "a\n",
    ],
)
def test_refuses_a_path_that_leaves_the_bundle(bundle: Path, name: str) -> None:
    assert not safe_name(name)
    data = json.loads((bundle / MANIFEST).read_text())
    edit(bundle, files={**data["files"], name: data["files"]["model.onnx"]})
    with pytest.raises(BundleError, match="unsafe path"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../model.onnx", "other.onnx", "/etc/passwd", 7, None])
def test_refuses_an_artefact_that_names_an_unlisted_file(bundle: Path, name: object) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    data["artifacts"][0]["file"] = name
    edit(bundle, artifacts=data["artifacts"])
    with pytest.raises(BundleError):
        open_bundle(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", None, [], True])
def test_refuses_an_unknown_schema(bundle: Path, schema: object) -> None:
    edit(bundle, schema=schema)
    with pytest.raises(BundleError, match="schema"):
        open_bundle(bundle)


@pytest.mark.parametrize("size", [-1, 1.5, "9", 2**60, None, True])
def test_refuses_an_absurd_size(bundle: Path, size: object) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    data["files"]["model.onnx"]["size"] = size
    edit(bundle, files=data["files"])
    with pytest.raises(BundleError, match="size"):
        open_bundle(bundle)


def test_refuses_a_manifest_cut_at_any_byte(bundle: Path) -> None:
    path = bundle / MANIFEST
    good = path.read_bytes()
    for keep in range(len(good)):
        path.write_bytes(good[:keep])
        with pytest.raises(BundleError):
            open_bundle(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "null",
        "7",
        "{",
        '{"schema": NaN}',
        '{"schema": 1, "schema": 1}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_refuses_what_is_not_a_manifest(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError):
        open_bundle(bundle)


@pytest.mark.parametrize("field", ["artifacts", "files", "model", "preprocess", "vitlet"])
@pytest.mark.parametrize("value", [None, 7, [7], {"a": 7}, [[]]])
def test_refuses_a_field_of_the_wrong_kind(bundle: Path, field: str, value: object) -> None:
    edit(bundle, **{field: value})
    with pytest.raises(BundleError):
        open_bundle(bundle)


def test_refuses_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json is not there"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nothing")


def test_gives_only_listed_files(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for name in ("../x", MANIFEST, "other"):
        with pytest.raises(BundleError, match="has no file"):
            opened.file(name)


def test_structure_only_leaves_hashing_to_check(bundle: Path) -> None:
    path = bundle / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    opened = open_bundle(bundle, hashes=False)
    opened.check(["model.onnx"])
    with pytest.raises(BundleError, match="was changed"):
        opened.check()
