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
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # the exit status


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt; after it a program of this package ends at once, without a word."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


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
