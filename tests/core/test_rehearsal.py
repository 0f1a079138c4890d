"""What work on a file dies of, only a child dies of."""

import os
import signal
import time

import pytest

from recurra.core import rehearsal
from recurra.core.rehearsal import rehearse


def test_work_that_comes_through_says_nothing() -> None:
    assert rehearse(lambda: None, seconds=5, memory=2**28) == ""


def test_an_error_is_its_line() -> None:
    def work() -> None:
        raise ValueError("wrong\nin two lines")

    assert rehearse(work, seconds=5, memory=2**28) == "wrong in two lines"


def test_a_signal_memory_and_an_endless_loop_end_the_child_alone() -> None:
    def spin() -> None:
        while True:
            pass

    assert rehearse(lambda: os.kill(os.getpid(), signal.SIGSEGV), seconds=5, memory=2**28).startswith("reading it ends")
    assert rehearse(lambda: bytearray(2**30), seconds=5, memory=2**28).startswith("reading it takes more than 256 MB")
    assert rehearse(spin, seconds=1, memory=2**28) == "reading it does not end within 1 s; it is damaged"


def test_a_child_that_only_waits_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about the file."""
    monkeypatch.setattr(rehearsal, "_PATIENCE", 0)
    started = time.monotonic()
    assert rehearse(lambda: time.sleep(100), seconds=1, memory=2**28) == ""
    assert time.monotonic() - started < 20
