"""The runs of a study."""

from __future__ import annotations

from study_cases import row, study

from tf_largebatch.study import jobs


def test_every_arm_searches_the_same_points_of_its_cube():
    made = study()
    clars, adamw = made.arms
    first, second = jobs.points(made, clars), jobs.points(made, adamw)
    assert len(first) == len(second) == made.trials
    assert jobs.points(made, clars) == first
    assert all(point["max_rate"] == 1.0 and 0.1 <= point["learning_rate"] <= 2 for point in first)
    # The first coordinate is the same, on the scale of each arm: position within the logarithmic range.
    import math

    place = lambda value, low, high: math.log(value / low) / math.log(high / low)  # noqa: E731
    for p, q in zip(first, second, strict=True):
        assert math.isclose(place(p["learning_rate"], 0.1, 2.0), place(q["learning_rate"], 1e-3, 3e-2), abs_tol=1e-9)


def test_final_runs_wait_for_the_search_and_take_its_best_point():
    made = study(batch_sizes=[64])
    searches = jobs.search_jobs(made)
    assert len(searches) == 2 * made.trials and jobs.total(made) == 2 * (3 + 2)
    rows = [row(job, 0.1 * (job.trial + 1)) for job in searches if job.arm == "clars"][:-1]
    assert all(job.phase == "search" for job in jobs.pending(made, rows))
    rows = [row(job, {0: 0.3, 1: 0.9, 2: 0.9}[job.trial]) for job in searches]
    final = jobs.pending(made, rows)
    assert [(job.phase, job.trial, job.seed) for job in final if job.arm == "clars"] == [
        ("final", 1, 1),
        ("final", 1, 2),
    ]
    assert jobs.pending(made, [*rows, *(row(job, 0.8) for job in final)]) == []


def test_an_arm_without_a_space_is_run_once_and_then_with_new_seeds():
    fixed = {"optimizer": "sgd", "fixed": {"learning_rate": 1.0}}
    made = study(batch_sizes=[64], arms={"a": fixed})
    (search,) = jobs.search_jobs(made)
    final = jobs.pending(made, [row(search, 0.5)])
    assert [job.seed for job in final] == [1, 2] and jobs.total(made) == 3


def test_another_setting_is_another_run():
    made, other = study(), study(seed=7)
    assert not {job.key for job in jobs.search_jobs(made)} & {job.key for job in jobs.search_jobs(other)}


def test_arms_that_come_first_are_finished_before_the_others_begin():
    made, rows, order = study(batch_sizes=[64]), [], []
    while waiting := jobs.pending(made, rows, first=["adamw"]):
        order.append((waiting[0].arm, waiting[0].phase))
        rows.append(row(waiting[0], 0.5))
    assert order == [(arm, phase) for arm in ("adamw", "clars") for phase in ["search"] * 3 + ["final"] * 2]
