"""Checkpoints from which a run continues bit for bit."""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_largebatch.check import require
from tf_largebatch.files import local_path, replacing
from tf_largebatch.training import processes

_NAME = re.compile(r"epoch-(\d+)\.npz")


class DamagedCheckpoint(ValueError):
    """A checkpoint whose file cannot be read: cut short or altered."""


class RunCheckpoint(keras.callbacks.Callback):
    """Saves the whole state of training at the end of every epoch.

    Where several processes of JAX train together, each must have this callback: the first one writes.

    Args:
        directory: Directory of the files `epoch-0001.npz`, ...; the number counts completed epochs.
        keep: How many of the latest checkpoints to keep.

    Raises:
        ValueError: If `keep` is no whole number of 1 or more.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2) -> None:
        super().__init__()
        require(isinstance(keep, int) and keep >= 1, "keep", keep, "a whole number of 1 or more")
        self.directory = local_path(directory)
        self.keep = keep

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves a checkpoint, then removes all but the last `keep`."""
        save_checkpoint(self.directory / f"epoch-{epoch + 1:04d}.npz", self.model, epoch + 1)
        if not processes.is_first():
            return
        for _, path in list_checkpoints(self.directory)[: -self.keep]:
            path.unlink()


def list_checkpoints(directory: str | os.PathLike[str]) -> list[tuple[int, pathlib.Path]]:
    """Returns the checkpoints of a directory as (completed epochs, path), oldest first; none if it is missing."""
    paths = local_path(directory).glob("epoch-*.npz")
    return sorted((int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name)))


def save_checkpoint(path: str | os.PathLike[str], model: keras.Model, epoch: int) -> None:
    """Saves every variable of a compiled model and of its optimizer: weights, moving averages, random seeds.

    So are the averages of `GradientNoiseScale`, the group of batches of `GrowBatchSize`, and the size that
    `micro_batch_size="auto"` has chosen.

    Keras's `save_weights` leaves out the state of seed generators, so dropout would draw other numbers after it.

    Where several processes of JAX train together, all must call it, since each may hold a part of the variables; the
    first one writes.

    Args:
        path: The file; it appears whole or not at all.
        model: A compiled model.
        epoch: Completed epochs.
    """
    arrays: dict[str, Any] = {
        f"{group}/{i}": _to_array(v) for group, vs in _state(model).items() for i, v in enumerate(vs)
    }
    if not processes.is_first():
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, epoch=epoch, **arrays)


def load_checkpoint(path: str | os.PathLike[str], model: keras.Model) -> int:
    """Restores what `save_checkpoint` saved.

    Args:
        path: The file.
        model: A compiled model, built as the saved one was.

    Returns:
        Completed epochs.

    Raises:
        DamagedCheckpoint: If the file cannot be read; the model is as it was.
        ValueError: If there is no such file, or the variables of the model are not those of the checkpoint; the model
            is as it was.
    """
    arrays = _read(path)
    state = {f"{group}/{i}": v for group, vs in _state(model).items() for i, v in enumerate(vs)}
    missing = set(state).symmetric_difference(set(arrays) - {"epoch"})
    wrong = [key for key in state if key not in missing and arrays[key].shape != tuple(state[key].shape)]
    if missing or wrong:
        name = sorted(missing)[0] if missing else f"{wrong[0]} ({state[wrong[0]].path})"
        raise ValueError(f"{path} must hold the variables of {model.name}; {name} differs.")
    for key, variable in state.items():
        variable.assign(arrays[key])
    return int(arrays["epoch"])


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads all arrays, whose checksums are compared here, before any variable changes."""
    require(local_path(path).is_file(), "path", os.fspath(path), "a file that exists")
    try:
        with np.load(local_path(path)) as file:
            arrays = {name: file[name] for name in file.files}
        int(arrays["epoch"])
    except (ValueError, TypeError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedCheckpoint(
            f"{os.fspath(path)} is damaged: remove it, or resume from another checkpoint."
        ) from error
    return arrays


def _state(model: keras.Model) -> dict[str, list[Any]]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    beside: dict[str, list[Any]] = getattr(model, "state_beside_variables", dict)()
    return {"model": model.variables, "optimizer": model.optimizer.variables, **beside}


def _to_array(variable: Any) -> np.ndarray:
    array = processes.whole(variable.value)
    # NumPy files know no bfloat16; float32 holds each of its values.
    return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array
