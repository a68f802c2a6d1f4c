"""Runs a study on several processes; what is done is never repeated."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml

from tf_largebatch.check import require
from tf_largebatch.files import replacing
from tf_largebatch.study import execution
from tf_largebatch.study import jobs as planning
from tf_largebatch.study.config import Study, make_study
from tf_largebatch.study.jobs import Job

RUNS = "runs.jsonl"
CONFIG = "study.yaml"


def run_study(
    study: Study,
    directory: str | os.PathLike[str],
    processes: int = 1,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
    first: Sequence[str] = (),
) -> bool:
    """Runs what a study still lacks, and appends every run to `runs.jsonl` as it ends.

    After an error in a run the other arms go on; those of the same arm and batch size are left out, and tried again by
    the next call.

    Args:
        study: The study.
        directory: Where its files are, or will be.
        processes: How many runs at once, each in a process of its own.
        minutes: No run begins that would, by the longest so far, end after this time; None for no limit.
        say: Takes a line of progress.
        first: Names of arms to finish, search and final runs, before the others begin, in this order.

    Returns:
        Whether the study is complete.

    Raises:
        ValueError: Before anything is written, if the directory holds another study, `first` names an arm that the
            study lacks, the data are not there, or network or optimizers cannot be made.
    """
    require(processes > 0, "processes", processes, "above 0")
    require(minutes is None or minutes > 0, "minutes", minutes, "above 0, or left out")
    unknown = sorted(set(first) - {arm.name for arm in study.arms})
    require(not unknown, "first", unknown, f"among {', '.join(arm.name for arm in study.arms)}")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    directory = pathlib.Path(directory)
    path = directory / RUNS
    _check_same(study, directory)
    rows = read_rows(path)
    total, began, done_before = planning.total(study), time.monotonic(), len(rows)
    failed: set[tuple[str, int]] = set()
    with _pool(processes) as pool:
        if len(rows) < total:
            # Before anything is written. Where the runs are: this process may take no memory of a GPU.
            pool.submit(_check, study, planning.pending(study, rows, first)).result()
        _write_config(study, directory)
        if processes == 1 and len(rows) < total:
            execution.prepare(study, planning.pending(study, rows, first))
        running: dict[concurrent.futures.Future[dict[str, Any]], Job] = {}
        try:
            while True:
                if len(running) < processes:
                    _submit(study, rows, failed, running, processes, pool, deadline, first)
                if not running:
                    break
                finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    job = running.pop(future)
                    error = future.exception()
                    if error is not None:
                        failed.add((job.arm, job.batch_size))
                        say(
                            f"{job.arm}, batch {job.batch_size} failed and is left out: {type(error).__name__}: {error}"
                        )
                        continue
                    row = future.result()
                    append_row(path, row)
                    rows.append(row)
                    say(_progress(row, len(rows), total, (time.monotonic() - began) / (len(rows) - done_before)))
        except BaseException:
            for future in running:
                future.cancel()
            for process in list(getattr(pool, "_processes", {}).values()):
                process.terminate()  # A run takes minutes: an interruption does not wait for it.
            raise
    return len(rows) == total


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the runs in a file, one JSON object a line.

    A last line that a killed process left half-written is dropped.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    text = path.read_text()
    whole, _, rest = text.rpartition("\n")
    if rest:
        with replacing(path) as temporary:
            temporary.write_text(f"{whole}\n" if whole else "")
    return [json.loads(line) for line in whole.split("\n") if line]


def append_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends a run; it is on the disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _check_same(study: Study, directory: pathlib.Path) -> None:
    """Checks that the directory holds the same study, if it holds any."""
    path, content = directory / CONFIG, study.describe()
    if not path.exists():
        return
    # Fields that are newer than the file have their defaults.
    stored = make_study(yaml.safe_load(path.read_text())).describe()
    differing = sorted(key for key in content if stored.get(key) != content[key])
    require(
        not differing,
        "config",
        {key: content[key] for key in differing},
        f"the one in {path}",
        "choose another output_dir, or remove that one",
    )


def _write_config(study: Study, directory: pathlib.Path) -> None:
    """Writes the study's resolved configuration, unless it is there."""
    path = directory / CONFIG
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(study.describe(), sort_keys=False))


def _submit(
    study: Study,
    rows: list[dict[str, Any]],
    failed: set[tuple[str, int]],
    running: dict[concurrent.futures.Future[dict[str, Any]], Job],
    processes: int,
    pool: concurrent.futures.Executor,
    deadline: float | None,
    first: Sequence[str],
) -> None:
    """Starts the next runs, as many as there are free processes."""
    keys = {job.key for job in running.values()}
    waiting: Iterable[Job] = (
        job
        for job in planning.pending(study, rows, first)
        if job.key not in keys and (job.arm, job.batch_size) not in failed
    )
    longest = max((row["seconds"] for row in rows), default=0.0)
    for job in waiting:
        late = deadline is not None and time.monotonic() + longest > deadline
        if len(running) >= processes or late:
            return
        running[pool.submit(_work, study, job)] = job


def _progress(row: dict[str, Any], done: int, total: int, seconds_each: float) -> str:
    left = seconds_each * (total - done) / 60
    accuracy = row.get("test_accuracy", row["validation_accuracy"])
    outcome = "diverged" if row["status"] == "diverged" else f"{accuracy:.4f}"
    return (
        f"[{done}/{total}] {row['arm']}, batch {row['batch_size']}, {row['phase']} trial {row['trial']} "
        f"seed {row['seed']}: {outcome} ({row['seconds']:.0f} s, about {left:.0f} min left)"
    )


def _pool(processes: int) -> concurrent.futures.Executor:
    if processes == 1:
        return _InThisProcess()
    # A new interpreter each: TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)
    return concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_limit_threads, initargs=(threads,))


class _InThisProcess(concurrent.futures.Executor):
    """An executor that runs a job when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Runs the job and returns its result or its error."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _limit_threads(threads: int) -> None:
    """Gives this process its share of the cores; must run before TensorFlow starts its threads."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _work(study: Study, job: Job) -> dict[str, Any]:
    return execution.train(study, job)


def _check(study: Study, jobs: list[Job]) -> None:
    execution.check(study, jobs)


def main_line(text: str) -> None:
    """Prints a line at once, also where the output is a file."""
    print(text, flush=True, file=sys.stdout)
