"""Ctrl-C in the programs of this package: one sentence, also while Python imports Keras and its backend.

`python -m tf_largebatch.PROGRAM` imports this module first. From then on Ctrl-C ends the program at once, for nothing
has been written; within `raising` it raises KeyboardInterrupt, which the program turns into its own sentence.
Where the package is imported by another program, Ctrl-C stays as that program has it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit status
_SOON = 0.1  # seconds


# Whether Ctrl-C was pressed since `raising` was entered.
_pressed = False


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt; after it a program of this package ends at once, without a word.

    Python drops an exception that is raised while a finalizer or a callback of the garbage collector runs; this one is
    raised again then.
    """
    global _pressed
    previous, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    of_program = previous is _end
    # Only the main thread may set handlers; no other is interrupted.
    set_here = (of_program or previous is signal.default_int_handler) and (
        threading.current_thread() is threading.main_thread()
    )

    def again(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:
            threading.Timer(_SOON, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(lost)

    _pressed, sys.unraisablehook = False, again
    if set_here:
        signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        if set_here:
            signal.signal(signal.SIGINT, signal.SIG_DFL if of_program else previous)
        sys.unraisablehook = hook


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Within `raising` it turns every error after Ctrl-C into KeyboardInterrupt.

    Code in C that Python interrupts reports an error of its own: NumPy a SystemError, JAX a JaxRuntimeError, an import
    that stops half-way an AttributeError later.
    """
    try:
        yield
    except Exception as error:
        if _pressed:
            raise KeyboardInterrupt from error
        raise


def _raise(number: int, frame: FrameType | None) -> None:
    global _pressed
    _pressed = True
    signal.default_int_handler(number, frame)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the process; an exception would be lost in imports that catch every error."""
    del number, frame
    os.write(2, b"\ninterrupted: nothing was written.\n")
    os._exit(INTERRUPTED)


def _is_program(argv: list[str], command: list[str]) -> bool:
    """Returns whether Python is about to run a module of this package with -m.

    Args:
        argv: `sys.argv`, whose first item is "-m" until the module is found.
        command: `sys.orig_argv`, the command with Python's own options.
    """
    return argv[:1] == ["-m"] and any(word.split(".")[0] in ("tf_largebatch", "-mtf_largebatch") for word in command)


# Not where Ctrl-C is ignored, as under nohup.
if _is_program(sys.argv, sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
