"""What --camera reads: every frame of a film, the newest of a camera, and what fails."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from films import write_film

from vitlet.apps import camera as module
from vitlet.apps.camera import Camera
from vitlet.errors import DeadlineError, UsageError


class Scripted:
    """A capture that gives what the test puts in, and fails when it is told to."""

    def __init__(self, opens: bool = True) -> None:
        self.opens, self.frames, self.ended = opens, [], False
        self.ready = threading.Condition()

    def give(self, *values: int | None) -> None:
        with self.ready:
            self.frames += values
            self.ready.notify_all()
            assert self.ready.wait_for(lambda: not self.frames, 10)

    def end(self) -> None:
        with self.ready:
            self.ended = True
            self.ready.notify_all()

    def isOpened(self) -> bool:
        return self.opens

    def read(self):
        with self.ready:
            assert self.ready.wait_for(lambda: self.frames or self.ended, 10)
            if not self.frames:
                return False, None
            value = self.frames.pop(0)
            self.ready.notify_all()
        if value is None:
            return False, None
        return True, np.array([[[value, 1, 2]]], np.uint8)

    def release(self) -> None:
        pass


def test_of_a_film_every_frame_is_given_as_rgb(tmp_path):
    made = write_film(tmp_path / "film.avi", 6)
    film = Camera(str(tmp_path / "film.avi"), pytest.fail)
    read = list(film.pictures())
    film.close()
    assert not film.live and film.passed_over == 0
    assert np.abs(np.array(read).astype(int) - made).max() < 12  # JPEG loses a little


def test_of_a_camera_the_newest_frame_is_given_and_others_are_counted():
    source = Scripted()
    camera = Camera("0", lambda line: None, lambda name: source)
    pictures = camera.pictures()
    source.give(7)
    assert next(pictures).tolist() == [[[2, 1, 7]]]
    source.give(8, 9, 10, 11)
    newest = next(pictures)[0, 0, 2]
    while newest < 11:  # the last may not have been stored yet
        newest = next(pictures)[0, 0, 2]
    assert newest == 11 and camera.passed_over >= 2
    later = threading.Timer(0.1, source.give, [12, 13])
    later.start()
    assert next(pictures)[0, 0, 2] in (12, 13)  # waited for
    later.join()
    source.end()
    camera.close()
    assert list(pictures) == []


def test_a_camera_that_was_unplugged_is_opened_again(monkeypatch):
    monkeypatch.setattr(module, "RETRY", 0.01)
    sources = [Scripted(), Scripted(opens=False), Scripted(opens=False), Scripted()]
    opened, said = itertools.chain(sources, itertools.repeat(sources[3])), []
    camera = Camera("/dev/video9", said.append, lambda name: next(opened))
    sources[0].give(None)
    sources[3].give(5)
    assert next(camera.pictures())[0, 0, 2] == 5
    assert said == [
        "camera /dev/video9 gives no picture: opening it again", "camera /dev/video9 is back"
    ]  # fmt: skip
    sources[3].end()
    camera.close()


def test_a_camera_that_stays_away_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    source = Scripted()
    camera = Camera("0", lambda line: None, lambda name: source)
    source.opens = False
    source.give(None)
    with pytest.raises(DeadlineError, match=r"gave no picture for 0\.05 s"):
        list(camera.pictures())
    camera.close()


def test_what_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "text.avi").write_text("no film")
    for source in (str(tmp_path / "none.avi"), str(tmp_path / "text.avi"), "/dev/null"):
        with pytest.raises(UsageError, match="cannot be opened"):
            Camera(source, pytest.fail)
