"""The runs of a study: which there are, and which of them are still to be done."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import qmc

from tf_largebatch.study.config import Arm, Study


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        arm: Name of the arm.
        batch_size: Examples of an update.
        phase: "search" or "final".
        trial: Number of the point in the arm's search.
        seed: Seed of the initial weights and of the order of the images.
        point: All hyper-parameters, fixed ones included.
    """

    arm: str
    batch_size: int
    phase: str
    trial: int
    seed: int
    point: Mapping[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """A name that only the same run has."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def points(study: Study, arm: Arm) -> list[dict[str, Any]]:
    """Returns the points of an arm's search: the same quasi-random sequence of the unit cube for every arm.

    Halton, "On the efficiency of certain quasi-random sequences of points", 1960, scrambled by the study's seed.
    """
    if not arm.space:
        return [dict(arm.fixed)]
    cube = qmc.Halton(len(arm.space), scramble=True, seed=study.seed).random(study.trials)
    return [
        {
            **arm.fixed,
            **{name: dimension.at(float(u)) for (name, dimension), u in zip(arm.space.items(), row, strict=True)},
        }
        for row in cube
    ]


@functools.lru_cache(maxsize=8)
def all_points(study: Study) -> dict[str, list[dict[str, Any]]]:
    """Returns the points of every arm's search."""
    return {arm.name: points(study, arm) for arm in study.arms}


@functools.lru_cache(maxsize=8)
def search_jobs(study: Study) -> tuple[Job, ...]:
    """Returns all runs of all searches, in an order in which every arm has about as many runs at any time."""
    return tuple(
        Job(arm.name, batch_size, "search", trial, study.seed, all_points(study)[arm.name][trial])
        for trial in range(study.trials)
        for batch_size in study.batch_sizes
        for arm in study.arms
        if trial < study.trials_of(arm.name)
    )


def best_job(study: Study, arm: str, batch_size: int, rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the search run with the best validation accuracy at the end; None before the search is complete.

    Of equal accuracies the first trial is the best.
    """
    found = [r for r in rows if (r["arm"], r["batch_size"], r["phase"]) == (arm, batch_size, "search")]
    if len({row["trial"] for row in found}) < study.trials_of(arm):
        return None
    return max(found, key=lambda row: (row["validation_accuracy"], -row["trial"]))


def final_jobs(study: Study, rows: Iterable[Mapping[str, Any]]) -> list[Job]:
    """Returns the runs with new seeds of the best points, for every arm and batch size whose search is complete."""
    rows = list(rows)
    jobs = []
    for batch_size in study.batch_sizes:
        for arm in study.arms:
            best = best_job(study, arm.name, batch_size, rows)
            if best is not None:
                point = all_points(study)[arm.name][best["trial"]]
                jobs += [Job(arm.name, batch_size, "final", best["trial"], seed, point) for seed in study.final_seeds]
    return jobs


def pending(study: Study, rows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()) -> list[Job]:
    """Returns the runs that can be done now and are not.

    Args:
        study: The study.
        rows: The runs that are done.
        first: Names of arms whose searches and final runs come before everything else, one arm after the other.
    """
    rows = list(rows)
    done = {row["key"] for row in rows}
    jobs = [job for job in (*search_jobs(study), *final_jobs(study, rows)) if job.key not in done]
    rank = {name: number for number, name in enumerate(first)}
    return sorted(jobs, key=lambda job: rank.get(job.arm, len(rank)))


def total(study: Study) -> int:
    """Returns how many runs the whole study has."""
    trials = sum(study.trials_of(arm.name) for arm in study.arms)
    return len(study.batch_sizes) * (trials + len(study.arms) * len(study.final_seeds))
