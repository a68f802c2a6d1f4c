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

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from tf_largebatch.files import read_json
from tf_largebatch.plots.run_files import CURVES, LAYERWISE_RATES, METRICS

__all__ = ["CURVES", "LAYERWISE_RATES", "METRICS"]
CONFIG = "config.json"
NOISE_SCALES = "noise_scales.csv"
PICTURES = "adversarial.png"
CHECKPOINTS = "checkpoints"
FINAL_MODEL = "final.keras"
RESULT = "result.json"


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
    return read_json(path)["arguments"]


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
