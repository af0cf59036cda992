"""Bundles come in chunks, over any number of attempts, and only whole ones count."""

from __future__ import annotations

import json
from collections import namedtuple

import pytest

from vitlet.errors import BundleError, StorageError
from vitlet.partition.cluster import cache as cache_module
from vitlet.partition.cluster.cache import Cache
from vitlet.partition.cluster.push import steps


@pytest.fixture
def bundle(light):
    """Of slot 0: hash, manifest, file -> content."""
    opened = light.slot_bundle(0)
    files = {name: opened.file(name).read_bytes() for name in opened.manifest.files}
    return light.slots[0].sha256, (opened.path / "manifest.json").read_bytes(), files


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def fill(cache, bundle, chunk=100):
    sha256, manifest, files = bundle
    held = cache.begin(sha256, manifest)
    for name, content in files.items():
        at = held[name]
        while at < len(content):
            at = cache.write(sha256, name, at, content[at : at + chunk])
    return cache.finish(sha256)


def test_a_bundle_arrives_in_chunks_and_stays(cache, bundle):
    assert cache.bundle(bundle[0]) is None
    assert fill(cache, bundle).path.name == bundle[0]
    again = Cache(cache.root)
    assert again.bundle(bundle[0]) is not None
    assert not list((cache.root / "parts").iterdir())
    assert again.begin(*bundle[:2]) == {n: len(c) for n, c in bundle[2].items()}  # nothing to send


def test_a_push_goes_on_where_it_ended(cache, bundle):
    sha256, manifest, files = bundle
    cache.begin(sha256, manifest)
    cache.write(sha256, "features.onnx", 0, files["features.onnx"][:77])
    again = Cache(cache.root)  # the worker was restarted
    assert again.begin(sha256, manifest)["features.onnx"] == 77
    assert again.write(sha256, "features.onnx", 0, b"again") == 77  # a repeated chunk changes none
    assert again.write(sha256, "features.onnx", 500, b"ahead") == 77
    assert fill(again, bundle)


def test_a_wrong_bundle_is_refused_and_its_wrong_file_comes_again(cache, bundle):
    sha256, manifest, files = bundle
    wrong = bytearray(files["features.onnx"])
    wrong[50] ^= 1
    with pytest.raises(BundleError, match="changed"):
        fill(cache, (sha256, manifest, {**files, "features.onnx": bytes(wrong)}))
    assert cache.bundle(sha256) is None
    assert cache.begin(sha256, manifest)["features.onnx"] == 0
    assert fill(cache, bundle)


def test_an_incomplete_bundle_does_not_count(cache, bundle):
    cache.begin(*bundle[:2])
    with pytest.raises(BundleError):
        cache.finish(bundle[0])
    assert cache.bundle(bundle[0]) is None


def test_a_bundle_that_is_damaged_on_the_disk_is_removed(cache, bundle):
    path = fill(cache, bundle).path / "features.onnx"
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cache.bundle(bundle[0]) is None
    assert fill(cache, bundle)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "manifest.json", ""])
def test_paths_that_leave_the_bundle_are_refused(cache, bundle, name):
    import hashlib

    data = json.loads(bundle[1])
    data["files"][name] = data["files"].pop("features.onnx")
    manifest = json.dumps(data).encode()
    with pytest.raises(BundleError, match="unsafe path"):
        cache.begin(hashlib.sha256(manifest).hexdigest(), manifest)
    assert not list((cache.root / "parts").iterdir())


def test_what_was_not_announced_is_refused(cache, bundle):
    sha256, manifest, files = bundle
    with pytest.raises(BundleError, match="not the one of the plan"):
        cache.begin(sha256, manifest + b" ")
    with pytest.raises(BundleError, match="not begun"):
        cache.write(sha256, "features.onnx", 0, b"x")
    with pytest.raises(BundleError, match="not a SHA-256"):
        cache.write("../../etc", "passwd", 0, b"x")
    cache.begin(sha256, manifest)
    with pytest.raises(BundleError, match="no file 'other'"):
        cache.write(sha256, "other", 0, b"x")
    with pytest.raises(BundleError, match="longer than"):
        cache.write(sha256, "features.onnx", 0, files["features.onnx"] + b"x")


def test_a_full_disk_is_said_before_and_during_a_push(cache, bundle, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(9, 9, 9))
    with pytest.raises(StorageError, match="there is room for 9"):
        cache.begin(*bundle[:2])
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(0, 0, 1 << 30))
    cache.begin(*bundle[:2])
    cache.write(bundle[0], "features.onnx", 0, b"0123456789")
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: Usage(9, 9, 9))
    with pytest.raises(StorageError, match="make room"):
        cache.write(bundle[0], "features.onnx", 10, b"0123456789")


def test_plans_and_loaded_slots_survive(cache, light):
    cache.save_plan(light, {"signature": "s"})
    cache.save_loaded([(light.hash, 2), (light.hash, 0)])
    (cache.root / "plans" / "0.json").write_text("{}")  # damaged: removed
    again = Cache(cache.root)
    assert list(again.plans()) == [(light, {"signature": "s"})]
    assert again.loaded() == [(light.hash, 0), (light.hash, 2)]
    (cache.root / "loaded.json").write_text("[1]")
    assert again.loaded() == []


def test_the_steps_of_a_push_send_what_is_missing(light, bundle):
    size = len(bundle[2]["features.onnx"])
    orders = steps(light, 0, {}, chunk=200)
    table, _ = next(orders)
    seen = [table["order"]]
    held, answer = size - 350, {}
    try:
        while True:
            table, data = orders.send(answer)
            seen.append(table["order"])
            answer = {"held": {"features.onnx": held}} if table["order"] == "begin" else {}
            if table["order"] == "chunk":
                assert table["offset"] == held and len(data) <= 200
                held += len(data)
                answer = {"held": held}
    except StopIteration:
        assert seen == ["plan", "begin", "chunk", "chunk", "finish", "load"]
