"""Ctrl-C in programs: which processes are programs of the package, and an interrupt that would be lost.

tests/reliability/test_faults.py interrupts real processes, while they import and while they train.
"""

from __future__ import annotations

import signal
import time

import pytest

from tf_largebatch import interrupts


class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # Python calls the handler here


def test_an_interrupt_in_a_finalizer_is_not_lost(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.raising():
            lost = Interrupted()
            del lost
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_that_follows_from_an_interrupt_is_the_interrupt():
    """As NumPy does, whose code in C makes a SystemError of what Python raises in it."""

    def interrupted():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), interrupts.raising(), interrupts.kept():
                interrupted()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            # Without Ctrl-C an error stays what it is.
            with pytest.raises(SystemError, match="own"), interrupts.raising(), interrupts.kept():
                raise SystemError("its own")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("argv", "command", "is_program"),
    [
        (["-m"], ["python", "-m", "tf_largebatch.train", "--epochs=1"], True),
        (["-m"], ["python", "-X", "dev", "-mtf_largebatch.study"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["train.py"], ["python", "train.py", "tf_largebatch.train"], False),
        (["-c"], ["python", "-c", "import tf_largebatch"], False),
        ([], [], False),
    ],
)
def test_which_processes_are_programs(argv, command, is_program):
    assert interrupts._is_program(argv, command) is is_program
