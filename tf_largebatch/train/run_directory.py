"""The directory of a run: its files, whether a run may start or continue there, and the lock that keeps others out.

config.json            the arguments, given and resolved, and what they led to
metrics.csv            one row an epoch
layerwise_rates.csv    one row a recorded update and tensor (CLARS, LARS)
noise_scales.csv       one row an epoch and tensor (where the gradient noise scale is measured)
curves.png             drawn from these
adversarial.png        images, perturbations and adversarial images at the end (with --adversarial)
checkpoints/           the last epochs, to resume from
final.keras            the trained model, when the run is complete
best.keras             the model of the best epoch (with --save_best)
tensorboard/           metrics, rates and norms (with --tensorboard)
result.json            the accuracy reached, when the run is complete
.lock                  the process that trains here, while it runs
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from tf_largebatch.check import require
from tf_largebatch.files import TEMPORARY, local_path, naming_damage, read_json, sweep
from tf_largebatch.plots.run_files import CURVES, LAYERWISE_RATES, METRICS
from tf_largebatch.train.config import FLAGS, NOT_STORED

CONFIG = "config.json"
NOISE_SCALES = "noise_scales.csv"
PICTURES = "adversarial.png"
CHECKPOINTS = "checkpoints"
FINAL_MODEL = "final.keras"
BEST_MODEL = "best.keras"
TENSORBOARD = "tensorboard"
RESULT = "result.json"
LOCK = ".lock"

__all__ = [
    "BEST_MODEL",
    "CHECKPOINTS",
    "CONFIG",
    "CURVES",
    "FINAL_MODEL",
    "LAYERWISE_RATES",
    "LOCK",
    "METRICS",
    "NOISE_SCALES",
    "PICTURES",
    "RESULT",
    "TENSORBOARD",
    "DirectoryRefused",
    "check_free",
    "check_new",
    "check_same_run",
    "check_types",
    "check_writable",
    "held",
    "read_arguments",
    "read_config",
]


class DirectoryRefused(ValueError):
    """A run may not start or continue in this directory."""


def read_arguments(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the resolved arguments of the run in a directory, by the flags' names.

    Raises:
        ValueError: If there is no run, or its config.json is damaged.
    """
    path = pathlib.Path(output_dir) / CONFIG
    require(path.is_file(), "output_dir", str(output_dir), f"a directory with a run's {CONFIG} to resume from")
    with naming_damage(path):
        arguments = dict(read_json(path)["arguments"])
    check_types(arguments, path)
    return arguments


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the arguments of a file for --config, by the flags' names.

    Args:
        path: A JSON or YAML file that maps flags' names to values, or the config.json of a run.

    Raises:
        ValueError: If the file cannot be read, or an argument is no flag or has a wrong type.
    """
    path = local_path(path, "config")
    suffixes = (".json", ".yaml", ".yml")
    require(path.suffix in suffixes and path.is_file(), "config", str(path), "a .json, .yaml or .yml file that exists")
    if path.suffix == ".json":
        content = read_json(path)
    else:
        import yaml

        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is no YAML file ({reason}): mend it.") from error
    arguments = content.get("arguments", content) if isinstance(content, dict) else None
    require(isinstance(arguments, dict), "config", str(path), "a mapping of flags' names to values")
    assert isinstance(arguments, dict)  # it was checked
    for name in arguments:
        near = difflib.get_close_matches(str(name), FLAGS, n=1)
        known = name in FLAGS and name not in NOT_STORED
        require(known, "config", str(name), "made of flags of the run", f"did you mean {near[0]}" if near else "")
    check_types(arguments, path)
    return arguments


def check_types(arguments: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raises unless every argument that is a flag has the flag's type.

    Args:
        arguments: The arguments by the flags' names.
        path: The file that they come from, for the message.

    Raises:
        ValueError: Naming the first one that has not.
    """
    for name, value in arguments.items():
        if name in FLAGS and value is not None and value not in FLAGS[name].words:
            kinds = (int, float) if FLAGS[name].type is float else (FLAGS[name].type,)
            require(
                isinstance(value, kinds) and (FLAGS[name].type is bool) == isinstance(value, bool),
                name,
                value,
                f"of type {FLAGS[name].type.__name__} in {path}",
                "mend the file, or restore it",
            )


def check_new(output_dir: str | os.PathLike[str]) -> None:
    """Raises unless the directory is missing or empty; what a killed run left before its first file does not count.

    Raises:
        DirectoryRefused: In one sentence.
    """
    path = pathlib.Path(output_dir)
    if path.is_dir() and any(one.name != LOCK and not one.name.startswith(TEMPORARY) for one in path.iterdir()):
        state = "holds a run: add --resume to continue it, or" if (path / CONFIG).exists() else "is not empty:"
        raise DirectoryRefused(f"output_dir={str(output_dir)!r} {state} name another directory.")


def check_writable(output_dir: str | os.PathLike[str]) -> None:
    """Raises unless the directory can be made and written to.

    Raises:
        DirectoryRefused: In one sentence.
    """
    path = pathlib.Path(output_dir).absolute()
    existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
    for holds, rule in (
        (existing.is_dir(), f"a directory, and {existing} is a file"),
        (os.access(existing, os.W_OK | os.X_OK), f"writable, and {existing} is not"),
    ):
        require(holds, "output_dir", str(output_dir), rule, "name another directory", error=DirectoryRefused)


def check_same_run(output_dir: str | os.PathLike[str], arguments: Mapping[str, Any]) -> None:
    """Raises unless the directory holds a run with these arguments.

    Raises:
        ValueError: Naming the first argument that differs.
    """
    stored = read_arguments(output_dir)
    # Through JSON, so that types compare as they are stored.
    for name, value in json.loads(json.dumps(dict(arguments))).items():
        if stored.get(name) != value:
            raise DirectoryRefused(
                f"output_dir={str(output_dir)!r} holds another run, with {name}={stored.get(name)!r}; "
                f"received {name}={value!r}."
            )


def check_free(output_dir: str | os.PathLike[str]) -> None:
    """Raises if another process trains in the directory; writes nothing.

    Raises:
        DirectoryRefused: Naming the process.
    """
    path = pathlib.Path(output_dir) / LOCK
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH, path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Makes the directory and keeps other runs out of it while the block runs.

    The lock is the operating system's: it ends with the process however that ends, so that what a killed process left
    locks nothing. What that process had begun to write is removed.

    Raises:
        DirectoryRefused: If another process trains in the directory.
    """
    directory = pathlib.Path(output_dir)
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        sweep(directory)
        sweep(directory / CHECKPOINTS)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            # Of a run that ended before it wrote its first file nothing stays.
            with contextlib.suppress(OSError):
                directory.rmdir()


def _locked(path: pathlib.Path) -> int:
    """Opens the lock file and locks it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, fcntl.LOCK_EX, path)
            # The process that held it may have removed the file in between.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, kind: int, path: pathlib.Path) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DirectoryRefused(
            f"output_dir={str(path.parent)!r} is in use by {_holder(path)}: wait until it ends."
        ) from error
    except OSError as error:
        # Some network file systems have no locks: the run goes on without one.
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise


def _holder(path: pathlib.Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
