"""What `micro_batch_size="auto"` has chosen, and what is said of it."""

from __future__ import annotations

import sys
from typing import Any

from keras import ops

from tf_largebatch.core.micro_batch_sizes import largest_size
from tf_largebatch.training.memory_limit import OutOfMemory

AUTO = "auto"


class AutomaticSize:
    """The micro-batch size of a model with `micro_batch_size="auto"`.

    It is saved in checkpoints like a variable, so that a run that is resumed begins with the size it had: with batch
    normalization another size would be another update.

    Attributes:
        size: Number of examples of a micro-batch; None where the whole batch fits, and before the first step.
        fits: How many examples are known to fit at a time; 0 before the first step.
        refusal: Why the loss cannot be split, an error to raise where that is necessary; None if it can.
    """

    path = "micro_batch_size"
    shape = ()

    def __init__(self) -> None:
        self.size: int | None = None
        self.fits = 0
        self.refusal: ValueError | None = None
        self._said: str | None = None

    @property
    def value(self) -> Any:
        """The size as a tensor, 0 for None; what a checkpoint holds."""
        return ops.convert_to_tensor(self.size or 0, "int32")

    def assign(self, value: Any) -> None:
        """Begins with a size from a checkpoint."""
        self.size = int(value) or None

    def use(self, size: int | None, batch_size: int) -> None:
        """Makes the steps that are traced from now on split batches so.

        Args:
            size: Number of examples of a micro-batch; the batch's or None for no split.
            batch_size: Number of examples of the batch, on a replica.

        Raises:
            ValueError: If the loss couples the examples of a batch that must be split.
        """
        split = size is not None and size < batch_size
        if split and self.refusal is not None:
            raise self.refusal
        self.size = size if split else None

    def adopt(self, batch_size: int, detail: str = "", announce: bool = True) -> None:
        """Says which size was chosen, once it is known to fit.

        Args:
            batch_size: Number of examples of the batch, on a replica.
            detail: More to say, in brackets.
            announce: Whether this process says it.
        """
        self.fits = max(self.fits, self.size or batch_size)
        how = f"run in micro-batches of {self.size}" if self.size else "fit whole"
        if announce and self._said != how:
            self._said = how
            print(
                f"micro_batch_size=auto: batches of {batch_size} examples {how}{detail and f' ({detail})'}.",
                file=sys.stderr,
            )


def smaller_size(batch_size: int, tried: int, equal: bool = False) -> int | None:
    """Returns the micro-batch to try after one that ran out of memory, about half of it; None after one example.

    Args:
        batch_size: Number of examples of the batch.
        tried: How many examples ran at a time.
        equal: As in `largest_size`.
    """
    return largest_size(batch_size, tried // 2, equal=equal) if tried > 1 else None


def does_not_fit(argument: Any, at_a_time: int | None, estimate: int | None, needs: str = "") -> OutOfMemory:
    """Returns the error of a training step that ran out of memory.

    Args:
        argument: The model's `micro_batch_size`.
        at_a_time: How many examples ran at a time; None if it is not known.
        estimate: The largest micro-batch that is expected to fit; None if there is none, or, without `at_a_time`, if it
            is not known.
        needs: What the step needs and what there is, in brackets; "" if it is not known.
    """
    how = "" if at_a_time is None else f" with {at_a_time} example{'s' * (at_a_time != 1)} at a time"
    begin = f"The training step ran out of memory{how}{needs and f' ({needs})'}"
    if estimate is None and at_a_time is None:
        return OutOfMemory(
            f"{begin}; micro_batch_size={argument!r}: pass a part of the batch's examples, or "
            f"micro_batch_size={AUTO!r} to have the largest that fits found."
        )
    if estimate is None:
        return OutOfMemory(f"{begin}: not even micro_batch_size=1 fits; use a smaller model or smaller inputs.")
    other = "" if argument == AUTO else f", or micro_batch_size={AUTO!r} to have it found"
    return OutOfMemory(
        f"{begin}; micro_batch_size={argument!r}: pass micro_batch_size={estimate}, about the largest that fits{other}."
    )
