"""The result of a run, and its file."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from tf_largebatch.files import naming_damage, read_json, write_json
from tf_largebatch.train.run_directory import RESULT


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        accuracy: Share of the evaluation images classified correctly after the last epoch.
        loss: Mean loss of the evaluation images after the last epoch.
        updates: Updates of the weights.
        seconds: Wall time of all epochs, with evaluation and the first epoch's compilation.
        epochs: Completed epochs.
        complete: Whether these are all epochs of the run.
        output_dir: Directory of the run.
        attack: The attack of --eval_attack in words; None without one, or before the end of the run.
        attacked_accuracy: Share of the evaluation images classified correctly under that attack.
    """

    accuracy: float
    loss: float
    updates: int
    seconds: float
    epochs: int
    complete: bool
    output_dir: str
    attack: str | None = None
    attacked_accuracy: float | None = None

    @classmethod
    def read(cls, output_dir: str | os.PathLike[str]) -> Result | None:
        """Reads the result of a finished run; returns None if the run is not finished.

        Raises:
            ValueError: If the file is damaged; the message names it.
        """
        path = pathlib.Path(output_dir) / RESULT
        if not path.is_file():
            return None
        content = read_json(path)
        with naming_damage(path):
            # The directory may have been moved.
            return cls(**{**content, "output_dir": str(output_dir)})

    def write(self, output_dir: str | os.PathLike[str]) -> None:
        """Writes the result of a finished run."""
        write_json(pathlib.Path(output_dir) / RESULT, dataclasses.asdict(self))
