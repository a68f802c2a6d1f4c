"""The processes that train together, of one host or of several: `jax.distributed`'s."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LONGEST = 4096  # bytes of a text that processes exchange
FAILED = 1
# Of the libraries that carry sums between processes, and of JAX's coordination service.
_OF_CONNECTIONS = re.compile(
    "gloo|nccl|connection (closed|reset|refused)|heartbeat|coordination service|unavailable", re.IGNORECASE
)


class ProcessLost(RuntimeError):
    """Another process of the training is gone."""


def number() -> int:
    """Returns how many processes train together."""
    return jax.process_count()


def is_first() -> bool:
    """Returns whether this is the process that writes the files that all share."""
    return jax.process_index() == 0


def whole(value: jax.Array) -> np.ndarray:
    """Returns an array as NumPy's, with the parts that lie on devices of other processes.

    If there are such parts, all processes must call it, for they send them to each other.
    """
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.asarray(value)
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def exchanged(text: str) -> list[str]:
    """Returns the texts of all processes, in their order. All must call it.

    Args:
        text: What this process says; its first 4,096 bytes are sent.
    """
    if number() == 1:
        return [text]
    letters = np.frombuffer(text.encode()[:_LONGEST].ljust(_LONGEST), np.uint8)
    return [bytes(row).decode(errors="replace").rstrip() for row in multihost_utils.process_allgather(letters)]


def agree(values: Mapping[str, Any], remedy: str) -> None:
    """Raises on every process unless all have the same values. All must call it.

    Args:
        values: What must be equal, by names.
        remedy: What to do if it is not.

    Raises:
        ValueError: Naming the first value that differs.
    """
    texts = exchanged(json.dumps(dict(values), default=str))
    if len(set(texts)) == 1:
        return
    try:
        found = [json.loads(text) for text in texts]
    except ValueError:  # longer than what is exchanged
        raise ValueError(f"Every process must have the same {' and '.join(values)}: {remedy}.") from None
    for name in values:
        for other, theirs in enumerate(found):
            if theirs.get(name) != found[0].get(name):
                raise ValueError(
                    f"Every process must have the same {name}; received {name}={found[0].get(name)!r} in process 0 and "
                    f"{name}={theirs.get(name)!r} in process {other}: {remedy}."
                )


@contextlib.contextmanager
def refusing_together() -> Iterator[None]:
    """Within it a ValueError of one process is raised by all, so that none waits for another that has ended.

    All must enter it and leave it.
    """
    own: ValueError | None = None
    try:
        yield
    except ValueError as error:
        own = error
    for other, sentence in enumerate(exchanged("" if own is None else str(own))):
        if sentence:
            raise ValueError(f"process {other}: {sentence}") if own is None else own


@contextlib.contextmanager
def explaining_lost_processes() -> Iterator[None]:
    """Within it the error of a sum over processes of which one has ended is one sentence.

    This process then ends with its program, with status 1, and does not wait for the lost one.

    Raises:
        ProcessLost: In place of JAX's error.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # ValueError: if it fails while it is dispatched
        if not jax.distributed.is_initialized() or not _OF_CONNECTIONS.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[0].rstrip(".")
        # The last to be registered is the first to run: JAX's own handler would wait for the lost process.
        atexit.register(leave, FAILED)
        raise ProcessLost(
            f"Another process of the training has ended or cannot be reached ({reason}): start all processes again, "
            "and resume from the last checkpoint."
        ) from error


def leave(status: int) -> None:
    """Ends this process at once if it is one of several.

    The end of a Python program waits for the other processes, for minutes; after a failure they may be gone.

    Args:
        status: Exit status.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        if is_first():
            # It serves the others' connections: they may have a last sentence to print.
            time.sleep(1)
        os._exit(status)
