"""JAX only: keras.distribution makes the update of one device, by DataParallel, ModelParallel and the command line.

One process computes all cases, and each test reads its own.
"""

from __future__ import annotations

import json
import subprocess

import programs
import pytest

SHORT = ["2 replicas of 4 parts, CLARS", "refusals"]
LONG = [
    "8 replicas, a smaller last batch",
    "8 replicas, micro-batches, the last one smaller, sampled",
    "8 replicas, ConAdv",
    "2 parts, LARS",
    "4 replicas of 2 parts, ConAdv",
    "runs",
]
RESUMED = [
    "from 1 to 2 replicas",
    "from 2 replicas to 1",
    "from 2 parts to 1",
    "from 1 to 2 parts",
    "from 2 replicas of 2 parts to 4 replicas",
    "from 2 replicas to 1, ConAdv",
]
PARTS = {"2 replicas of 4 parts, CLARS": 4, "2 parts, LARS": 2, "4 replicas of 2 parts, ConAdv": 2}


def computed(names, folder):
    command = programs.command("several_devices_run.py", folder, *names)
    done = subprocess.run(command, env=programs.environment(8), cwd=programs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["case"]: one["found"] for one in found}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return computed(SHORT, tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return computed(LONG + RESUMED, tmp_path_factory.mktemp("long"))


def check_update(name, case):
    assert case["tolerances"] < 1, case
    assert {"loss", "accuracy", "top"} < set(case["compared"])  # keras 19290: metrics of the best k, on several devices
    assert case["split"] == PARTS.get(name, 1)
    if name in PARTS:  # and a checkpoint gives the parts back
        assert case["restored"] and case["restored split"]


def test_the_update_is_that_of_one_device(short):
    check_update(SHORT[0], short[SHORT[0]])


@pytest.mark.long
@pytest.mark.parametrize("name", LONG[:-1])
def test_every_update_is_that_of_one_device(long, name):
    check_update(name, long[name])


def test_batches_that_the_devices_do_not_divide(short):
    """keras 21167."""
    sentences = short["refusals"]
    assert len(sentences) == 3
    assert all("Every batch must have a multiple of 8 examples" in sentence for sentence in sentences)
    assert "received batch_size=20" in sentences[0] and "a last batch of 4" in sentences[1]


@pytest.mark.long
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_in_another_layout(long, name):
    # Weights, the optimizer's state and the states of random generators.
    assert long[name]["tolerances"] < 1, long[name]


@pytest.mark.long
def test_the_command_line_on_seven_devices_stopped_and_resumed(long):
    runs = long["runs"]
    assert set(runs["status"]) == {0}
    assert all(files == runs["files"][0] for files in runs["files"])
    assert runs["layout"] == {"strategy": "mirrored", "replicas": 7}


@pytest.mark.long
@pytest.mark.parametrize("layouts", ["seven", "one, seven", "seven, one"])
def test_the_command_line_goes_on_in_another_layout(long, layouts):
    # Weights and the optimizer's state after two epochs, and the metrics of each, evaluation included.
    found = long["runs"][layouts]
    assert found["weights"]["tolerances"] < 1 and found["metrics"]["tolerances"] < 1, found
