from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from vitlet.data.spec import Preprocess
from vitlet.errors import StorageError, UsageError
from vitlet.export.bundle import write_bundle
from vitlet.runtime.bundle import open_bundle
from vitlet.runtime.manifest import Manifest


def manifest() -> Manifest:
    return Manifest(
        vitlet="0",
        model={"name": "m", "score": float("inf")},
        preprocess=Preprocess(size=(8, 8), resize_to=8),
        artifacts=(),
        files={},
    )


def write(out: Path, text: str, *, force: bool = False, verified: bool = True) -> Path:
    with write_bundle(out, force=force) as draft:
        (draft.folder / "sub").mkdir()
        (draft.folder / "sub" / "file").write_text(text)
        return draft.finish(manifest(), verified=verified)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_bundle_opens_with_every_file_hashed(tmp_path: Path) -> None:
    bundle = open_bundle(write(tmp_path / "m.vitlet", "one"))
    assert set(bundle.manifest.files) == {"sub/file"}
    assert names(tmp_path) == ["m.vitlet"]
    # JSON has no infinity.
    assert (
        json.loads((tmp_path / "m.vitlet" / "manifest.json").read_text())["model"]["score"] is None
    )


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    folder = write(tmp_path / "m.vitlet", "one")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("x"), OSError(errno.ENOSPC, "No space left")]
)
def test_an_error_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), write_bundle(tmp_path / "m.vitlet") as draft:
        (draft.folder / "half").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_an_existing_bundle_stays_unless_force_and_until_success(tmp_path: Path) -> None:
    out = write(tmp_path / "m.vitlet", "one")
    with pytest.raises(UsageError, match="exists"):
        write(out, "two")
    with pytest.raises(RuntimeError), write_bundle(out, force=True):
        raise RuntimeError
    assert (out / "sub" / "file").read_text() == "one"
    write(out, "two", force=True)
    assert (out / "sub" / "file").read_text() == "two"
    assert names(tmp_path) == ["m.vitlet"]


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(write(tmp_path / "m.vitlet", "one"))
    for name in ("photos", "link"):
        with pytest.raises(UsageError, match="is not a bundle: it is never replaced"):
            write(tmp_path / name, "x", force=True)


def test_a_missing_folder_is_named_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist"):
        write(tmp_path / "no" / "m.vitlet", "x")


def test_an_unverified_bundle_has_its_own_name_and_spares_the_verified_one(tmp_path: Path) -> None:
    out = write(tmp_path / "m.vitlet", "good")
    for text in ("bad", "worse"):
        kept = write(out, text, force=True, verified=False)
    assert kept.name == "m.vitlet.unverified"
    assert (kept / "sub" / "file").read_text() == "worse"
    assert (out / "sub" / "file").read_text() == "good"


def test_a_rename_that_fails_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "m.vitlet", "one")
    rename, calls = Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match="Input/output error"):
        write(out, "two", force=True)
    monkeypatch.undo()
    assert (out / "sub" / "file").read_text() == "one"
    assert names(tmp_path) == ["m.vitlet"]
