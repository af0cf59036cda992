"""Lists, durations, image arguments, files written whole, hints."""

from __future__ import annotations

import errno
import os

import pytest

from vitlet.apps.files import write
from vitlet.apps.hints import existing
from vitlet.apps.images import find
from vitlet.apps.lists import duration, numbers
from vitlet.errors import StorageError, UsageError


@pytest.mark.parametrize(
    ("text", "value"), [("10s", 10), ("500ms", 0.5), ("2m", 120), ("1.5", 1.5), ("3 min", 180)]
)
def test_durations_have_units(text, value):
    assert duration(text, "--duration") == value


@pytest.mark.parametrize("text", ["", "0s", "-1s", "ten", "1h", "1s 2s"])
def test_what_is_no_duration_is_refused_by_option_and_value(text):
    with pytest.raises(UsageError, match="--duration takes a time"):
        duration(text, "--duration")


def test_numbers_come_from_comma_lists():
    assert numbers("50, 99.9,", "--percentiles", low=0, high=100) == [50, 99.9]


@pytest.mark.parametrize("text", ["", ",", "0", "1.5", "x", "nan", "1;2"])
def test_what_are_no_counts_is_refused(text):
    with pytest.raises(UsageError, match="--threads takes whole numbers of at least 1"):
        numbers(text, "--threads", low=1, whole=True)


def test_a_missing_file_is_answered_with_the_nearest_name(tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match=r"did you mean .*model\.onnx\?"):
        existing(tmp_path / "modl.onnx", "the file")
    with pytest.raises(UsageError, match="there is no folder"):
        existing(tmp_path / "nowhere" / "x", "the file")


def test_images_come_from_files_folders_and_patterns(pictures):
    names = [path.name for path in find([str(pictures)]).images]
    assert names == ["a.png", "b.jpg", "c.webp"]
    assert [path.name for path in find([str(pictures / "*.*g")]).images] == ["a.png", "b.jpg"]
    assert [path.name for path in find([str(pictures / "notes.txt")]).images] == ["notes.txt"]


def test_what_is_left_alone_in_a_folder_is_told(pictures):
    assert [path.name for path in find([str(pictures)]).others] == ["notes.txt"]


def test_folders_in_folders_are_searched_when_asked_for(pictures):
    with pytest.raises(UsageError, match="--recursive"):
        find([str(pictures.parent)])
    assert len(find([str(pictures.parent)], recursive=True).images) == 3


@pytest.mark.parametrize("argument", ["a.pmg", "x*.png"])
def test_an_argument_that_means_nothing_is_refused(pictures, argument):
    with pytest.raises(UsageError):
        find([str(pictures / argument)])


def test_a_name_with_brackets_that_exists_is_a_file_not_a_pattern(tmp_path):
    path = tmp_path / "photo [1].png"
    path.touch()
    assert find([str(path)]).images == [path]


def full(path):
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written_whole_or_what_was_there_stays(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    write(path, "old")
    with pytest.raises(StorageError, match="No space left"):
        write(path, full)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    write(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
