"""A run that is killed at any moment continues, and ends with the weights of one that was not.

`make test` kills nothing: it copies the directory of one run before every change of a file, which is what SIGKILL would
leave there, and resumes from copies. `make test-long` kills processes, fifty times at each kind of moment.
"""

from __future__ import annotations

import collections
import os
import pathlib
import random
import re
import shutil
import zipfile

import faulty_runs
import numpy as np
import pytest
from train_runs import add_networks, command_line, untimed_rows_of

from tf_largebatch.callbacks.checkpoint import list_checkpoints
from tf_largebatch.callbacks.layerwise_rates import read_layerwise_values
from tf_largebatch.callbacks.metrics import read_metrics
from tf_largebatch.callbacks.noise_scale import read_noise_scales
from tf_largebatch.files import TEMPORARY
from tf_largebatch.train import execute, final_model, run_directory
from tf_largebatch.train.result import Result

# Each resumed run compiles anew.
pytestmark = pytest.mark.quick_on_jax()
KILLED = ("SIGKILL", "SIGXFSZ")
# Everything whose state a checkpoint must keep: batch normalization, dropout, momentum, averages of weights and norms.
FLAGS = (
    *("--model=tiny", "--optimizer=clars", "--ema_momentum=0.9", "--save_best=val_accuracy"),
    *("--batch_size=256", "--norm_examples=64", "--augment=crop_flip", "--epochs=3", "--verbose=0"),
)
MICRO_BATCHES = "--micro_batch_size=64"
CHECKPOINT, RECORD, FINAL = r"^/checkpoints", r"csv$|config\.json$|curves\.png$", r"keras$|result\.json$"
KILLS, IN_A_ROW, SEED = 50, 10, 16


def arrays_of_checkpoint(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def check_whole(output_dir, checkpoints):
    """Every file that is there can be read, and every checkpoint is that of the undisturbed run, bit for bit.

    Args:
        output_dir: Directory of a run that was killed.
        checkpoints: The arrays of the undisturbed run's checkpoints, by epoch.
    """
    known = {"config.json", "metrics.csv", "layerwise_rates.csv", "noise_scales.csv", "curves.png", "result.json"}
    known |= {"checkpoints", "final.keras", "best.keras", ".lock"}
    files = {path.name: path for path in output_dir.iterdir() if not path.name.startswith(TEMPORARY)}
    assert set(files) <= known
    if "config.json" in files:
        run_directory.read_arguments(output_dir)
    read_metrics(output_dir / "metrics.csv")
    read_layerwise_values(output_dir / "layerwise_rates.csv")
    read_noise_scales(output_dir / "noise_scales.csv")
    for name in {"final.keras", "best.keras"} & set(files):
        with zipfile.ZipFile(files[name]) as archive:
            assert archive.testzip() is None and "tf_largebatch.json" in archive.namelist()
    if "curves.png" in files:
        assert files["curves.png"].read_bytes().endswith(b"IEND\xaeB`\x82")
    Result.read(output_dir)
    for epoch, path in list_checkpoints(output_dir / "checkpoints"):
        assert_same_arrays(arrays_of_checkpoint(path), checkpoints[epoch])


def assert_same_arrays(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def assert_same_run(output_dir, undisturbed):
    """Weights, state and records of two finished runs are equal; only times differ."""
    assert sorted(os.listdir(output_dir)) == sorted(os.listdir(undisturbed))
    found, expected = (list_checkpoints(path / "checkpoints") for path in (output_dir, undisturbed))
    # A kill before an old checkpoint was removed leaves it.
    assert found[-1][0] == expected[-1][0] and len(expected) <= len(found) <= len(expected) + 1
    for (epoch, one), (other_epoch, other) in zip(found[::-1], expected[::-1], strict=False):
        assert epoch == other_epoch
        assert_same_arrays(arrays_of_checkpoint(one), arrays_of_checkpoint(other))
    for name in ("final.keras", "best.keras"):
        if (undisturbed / name).exists():
            models = [final_model.load(path / name)[0] for path in (output_dir, undisturbed)]
            for one, other in zip(*(model.get_weights() for model in models), strict=True):
                np.testing.assert_array_equal(one, other)
    assert untimed_rows_of(output_dir / "metrics.csv") == untimed_rows_of(undisturbed / "metrics.csv")
    for name in ("layerwise_rates.csv", "noise_scales.csv"):
        if (undisturbed / name).exists():
            assert (output_dir / name).read_text() == (undisturbed / name).read_text()
    one, other = Result.read(output_dir), Result.read(undisturbed)
    assert (one.accuracy, one.loss, one.updates) == (other.accuracy, other.loss, other.updates)


def states_of(output_dir, *flags):
    """Trains; returns copies of the directory as it was before each change of a file, and the changes."""
    states, last = [], {}

    def copy(word, path):
        if not path.startswith(str(output_dir)) or not output_dir.exists():
            return
        paths = [p for p in output_dir.rglob("*") if p.is_file()]
        state = {p.relative_to(output_dir): p.read_bytes() for p in paths}
        files = {p.relative_to(output_dir): p.stat().st_ino for p in paths}
        # A file that is written to, and not replaced, may have grown by a part only.
        for name, (number, before) in last.items():
            if files.get(name) == number and len(state[name]) > len(before) > 0:
                half = state[name][: (len(before) + len(state[name])) // 2]
                states.append((f"{name} grows", {**state, name: half}))
        states.append((f"{word} {os.path.relpath(path, output_dir)}", state))
        last.clear()
        last.update({name: (files[name], state[name]) for name in state})

    with faulty_runs.watching(copy):
        assert command_line(*flags, f"--output_dir={output_dir}") == 0
    return states


def restored(state, output_dir):
    output_dir.mkdir()
    for name, content in state.items():
        (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (output_dir / name).write_bytes(content)
    return output_dir


def test_what_a_kill_leaves_is_whole_and_resumed(tmp_path, monkeypatch, capsys):
    """Every state is whole; two of each kind are resumed."""
    add_networks(monkeypatch)
    monkeypatch.setattr(execute, "plot_curves", lambda *args, **kwargs: None)  # drawing takes a second
    flags = ("--model=linear", "--optimizer=lars", "--save_best=val_accuracy", "--batch_size=512", "--epochs=3")
    undisturbed = tmp_path / "undisturbed"
    states = states_of(undisturbed, *flags, "--verbose=0")
    checkpoints = {}
    for number, (_, state) in enumerate(states):
        output_dir = restored(state, tmp_path / f"state-{number}")
        for epoch, path in list_checkpoints(output_dir / "checkpoints"):
            checkpoints.setdefault(epoch, arrays_of_checkpoint(path))
        check_whole(output_dir, checkpoints)
    assert sorted(checkpoints) == [1, 2, 3]
    draw, kinds = random.Random(SEED), {"training": "layerwise", "checkpoint": "npz", "record": "metrics|config|grows"}
    resumed = {}
    for pattern in (*kinds.values(), "final|best|result"):
        matching = [i for i, (change, state) in enumerate(states) if re.search(pattern, change) and known(state)]
        for number in draw.sample(matching, 2):
            resumed.setdefault(frozenset(known(states[number][1]).items()), number)
    for number in resumed.values():
        assert command_line("--resume", "--verbose=0", f"--output_dir={tmp_path / f'state-{number}'}") == 0
        assert_same_run(tmp_path / f"state-{number}", undisturbed)
    with capsys.disabled():
        print(f"\n{len(states)} states of a run's directory are whole, {len(resumed)} of them are resumed")


def known(state):
    """What a resumed run reads of a directory; empty if there is nothing to resume."""
    files = {name: content for name, content in state.items() if TEMPORARY not in name.name and name.name != ".lock"}
    return files if pathlib.Path("config.json") in files else {}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with faulty_runs.Server(tmp_path_factory.mktemp("server")) as one:
        yield one


class Undisturbed:
    """A run that nothing disturbs: its directory, its checkpoints by epoch, and the changes that it makes to files."""

    def __init__(self, server, directory, *flags):
        self.flags, self.directory = (*FLAGS, *flags), directory / "undisturbed"
        found = server.run(*self.flags, f"--output_dir={self.directory}")
        assert found["status"] == 0, found["err"]
        self.writes = [path for _, path in found["writes"]]
        # Two checkpoints are kept; the first is that of a run which stops there.
        first = directory / "first"
        assert server.run(*self.flags, "--stop_after_epoch=1", f"--output_dir={first}")["status"] == 0
        paths = list_checkpoints(first / "checkpoints") + list_checkpoints(self.directory / "checkpoints")
        self.checkpoints = {epoch: arrays_of_checkpoint(path) for epoch, path in paths}
        assert sorted(self.checkpoints) == [1, 2, 3]

    def matching(self, pattern):
        """How many changes match, and the size of the largest file that does."""
        paths = [path for path in self.directory.rglob("*") if path.is_file()]
        sizes = [p.stat().st_size for p in paths if re.search(pattern, f"/{p.relative_to(self.directory)}")]
        return sum(bool(re.search(pattern, path)) for path in self.writes), max(sizes)


def drawn(moment, undisturbed, seconds, draw):
    """Draws a fault of one kind of moment."""
    if moment == "training":
        if draw.random() < 0.5:
            return {"at": "time", "seconds": draw.uniform(0, seconds)}
        return {"at": "batch", "number": draw.randint(1, 15)}
    if moment == "micro-batches":
        return {"at": "micro-batch", "number": draw.randint(1, 15 * 4)}
    pattern = {"checkpoint": CHECKPOINT, "record": RECORD, "final model": FINAL}[moment]
    changes, size = undisturbed.matching(pattern)
    if draw.random() < 0.5:
        return {"at": "byte", "path": pattern, "number": draw.randint(1, size - 1)}
    return {"at": "write", "path": pattern, "number": draw.randint(1, changes)}


@pytest.mark.long
@pytest.mark.parametrize("moment", ["training", "checkpoint", "record", "final model", "micro-batches"])
def test_fifty_kills(moment, server, tmp_path, capsys):
    """Ten kills to a run, each of the process that continues after the one before; then it runs to its end."""
    draw = random.Random(f"{SEED} {moment}")
    undisturbed = Undisturbed(server, tmp_path, *([MICRO_BATCHES] if moment == "micro-batches" else []))
    seconds = min(read_metrics(undisturbed.directory / "metrics.csv")[-1]["seconds"] * 3 + 4, 8)
    died = collections.Counter()
    for number in range(KILLS // IN_A_ROW):
        output_dir, kills = tmp_path / f"run-{number}", 0
        for _ in range(10 * IN_A_ROW):
            fault = drawn(moment, undisturbed, seconds, draw) if kills < IN_A_ROW else None
            epochs = [epoch for epoch, _ in list_checkpoints(output_dir / "checkpoints")]
            begun = (output_dir / "config.json").exists()
            flags = ("--resume", "--verbose=0") if begun else undisturbed.flags
            finished = (output_dir / "result.json").exists()
            found = server.run(*flags, f"--output_dir={output_dir}", fault=fault)
            if epochs and not finished and "3 epochs" in found["out"]:
                assert f"3 epochs, {epochs[-1]} done" in found["out"]
            if found["signal"] is None:
                assert found["status"] == 0, (fault, found["err"])
                assert_same_run(output_dir, undisturbed.directory)
                if fault is None:
                    break
                shutil.rmtree(output_dir)  # it ended before the fault: another run
                continue
            assert found["signal"] in KILLED and "Traceback" not in found["err"], (fault, found)
            check_whole(output_dir, undisturbed.checkpoints)
            kills += 1
            died[fault["at"]] += 1
        assert kills == IN_A_ROW
    with capsys.disabled():
        print(f"\n{moment}: {sum(died.values())} kills, {dict(died)}")
    assert sum(died.values()) == KILLS
