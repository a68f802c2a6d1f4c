"""The directory of a run: whole files or none, and whether a run may continue there.

config.json            what was asked for and what it resolved to
metrics.csv            one row an epoch
layerwise_rates.csv    one row a recorded update and tensor (CLARS, LARS)
noise_scales.csv       one row an epoch and tensor (where the gradient noise scale is measured)
curves.png             drawn from these
adversarial.png        images, perturbation and adversarial copies at the end (with --adversarial)
checkpoints/           the last epochs, to resume from
final.keras            the trained model, when the run is complete
result.json            the accuracy reached, when the run is complete
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

CONFIG = "config.json"
METRICS = "metrics.csv"
LAYERWISE_RATES = "layerwise_rates.csv"
NOISE_SCALES = "noise_scales.csv"
CURVES = "curves.png"
PICTURES = "adversarial.png"
CHECKPOINTS = "checkpoints"
FINAL_MODEL = "final.keras"
RESULT = "result.json"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path; it becomes `path` at the end of a block that raised nothing.

    Whatever stops the process, `path` holds its old content or its new content, never a part of it.

    Args:
        path: The file to write. The temporary name keeps its suffix.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_arguments(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The resolved arguments of the run in `output_dir`.

    Raises:
        ValueError: If there is no run.
    """
    path = pathlib.Path(output_dir) / CONFIG
    if not path.is_file():
        raise ValueError(
            f"output_dir must hold a run's {CONFIG} to resume from; received output_dir={str(output_dir)!r}."
        )
    return json.loads(path.read_text())["arguments"]


def check_new(output_dir: str | os.PathLike[str]) -> None:
    """Raises ValueError unless `output_dir` is missing or empty."""
    path = pathlib.Path(output_dir)
    if path.exists() and not path.is_dir():
        raise ValueError(f"output_dir must be a directory; received output_dir={str(output_dir)!r}, a file.")
    if path.is_dir() and any(path.iterdir()):
        state = "holds a run: add --resume to continue it, or" if (path / CONFIG).exists() else "is not empty:"
        raise ValueError(f"output_dir={str(output_dir)!r} {state} name another directory.")


def check_same_run(output_dir: str | os.PathLike[str], arguments: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the first argument that differs, unless `output_dir` holds the same run."""
    stored = read_arguments(output_dir)
    # Through JSON, so that types compare as they are stored.
    for name, value in json.loads(json.dumps(dict(arguments))).items():
        if stored.get(name) != value:
            raise ValueError(
                f"output_dir={str(output_dir)!r} holds another run, with {name}={stored.get(name)!r}; "
                f"received {name}={value!r}."
            )
