"""Runs the trainings of a study: with programs that many of them share on JAX, else one by one with Keras's `fit`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from tf_largebatch.study.config import Study
from tf_largebatch.study.jobs import Job
from tf_largebatch.study.run import check, train_with_fit

__all__ = ["check", "prepare", "train"]


def prepare(study: Study, jobs: Iterable[Job]) -> None:
    """Compiles what these runs need, on JAX."""
    if keras.backend.backend() == "jax":
        _jax_runs(study).prepare(jobs)


def train(study: Study, job: Job) -> dict[str, Any]:
    """Trains once and returns the row of the run; on JAX with programs that many runs share.

    Args:
        study: The study.
        job: The run.

    Returns:
        See `row_of`.
    """
    if keras.backend.backend() == "jax":
        return _jax_runs(study).train(job)
    return train_with_fit(study, job)


def _jax_runs(study: Study) -> Any:
    from tf_largebatch.backend.jax.study_runs import runs_of

    return runs_of(study)
