"""The program as a whole: exit statuses, one sentence for each failure, Ctrl-C, disks that fail."""

from __future__ import annotations

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from train_runs import add_networks, command_line, rows_of

from tf_largebatch import callbacks, data
from tf_largebatch.callbacks.checkpoint import list_checkpoints
from tf_largebatch.train import TrainConfig, execute, prepare

pytestmark = pytest.mark.quick_on_jax(
    "test_ctrl_c_leaves_whole_files_and_the_last_epoch_to_resume_from",
    "test_a_failure_at_any_time_is_one_sentence[ctrl-c-make_train_function-]",
    "test_a_failure_at_any_time_is_one_sentence[disk full-savez-]",
    "test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before",
    "test_a_run_that_diverges_says_so",
)

FLAGS = ("--model=linear", "--optimizer=sgd", "--batch_size=512", "--verbose=0")


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    add_networks(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The files of a finished run of two epochs."""
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        add_networks(patch)
        assert command_line(*FLAGS, "--epochs=2", f"--output_dir={output_dir}") == 0
    return output_dir


@pytest.fixture
def run_of(tmp_path, finished):
    """Makes a copy of the finished run, as if it had been stopped after an epoch."""

    def make(stopped=True):
        output_dir = tmp_path / "run"
        for path in finished.rglob("*"):
            if path.is_file() and not (stopped and path.name in ("result.json", "final.keras")):
                target = output_dir / path.relative_to(finished)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return output_dir

    return make


def resume(output_dir, *flags):
    return command_line("--resume", "--verbose=0", f"--output_dir={output_dir}", *flags)


def whole(output_dir):
    """Whether the directory has no half-written file and no lock."""
    return not [path for path in pathlib.Path(output_dir).rglob(".*")]


def one_sentence(capsys, pattern):
    error = capsys.readouterr().err.strip()
    assert re.search(pattern, error), error
    assert error.count("\n") == 0, error
    return True


def test_ctrl_c_leaves_whole_files_and_the_last_epoch_to_resume_from(tmp_path, monkeypatch, capsys):
    output_dir = tmp_path / "run"
    record = callbacks.MetricsRecorder.on_epoch_end

    def interrupted(self, epoch, logs=None):
        record(self, epoch, logs)
        if epoch == 1:  # The row of epoch 2 is written, its checkpoint is not.
            raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.MetricsRecorder, "on_epoch_end", interrupted)
    assert command_line(*FLAGS, "--epochs=3", f"--output_dir={output_dir}") == 130
    assert one_sentence(
        capsys, f"^interrupted: --resume --output_dir={output_dir} continues after the last whole epoch.$"
    )
    assert [epoch for epoch, _ in list_checkpoints(output_dir / "checkpoints")] == [1]
    assert (output_dir / "curves.png").exists() and not (output_dir / "final.keras").exists() and whole(output_dir)

    monkeypatch.setattr(callbacks.MetricsRecorder, "on_epoch_end", record)
    # The arguments come from the directory.
    assert resume(output_dir) == 0
    assert "after 6 updates of 512 images" in capsys.readouterr().out
    assert [row["epoch"] for row in rows_of(output_dir / "metrics.csv")] == ["1", "2", "3"]
    assert (output_dir / "final.keras").exists()


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("place", "begun"),
    [
        ((data, "load"), False),
        ((prepare.models, "build"), False),
        ((prepare, "load_checkpoint"), False),
        ((keras.Model, "make_train_function"), True),
        ((callbacks.checkpoint.np, "savez"), True),
        ((keras.Model, "save"), True),
        ((execute, "plot_curves"), True),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize("failure", ["ctrl-c", "disk full"])
def test_a_failure_at_any_time_is_one_sentence(place, begun, failure, run_of, tmp_path, monkeypatch, capsys):
    """Each replaced function begins to write what it should, and fails half way."""
    output_dir = run_of()
    damaged = list_checkpoints(output_dir / "checkpoints")[-1][1]
    damaged.unlink()
    before = {path: path.read_bytes() for path in output_dir.rglob("*") if path.is_file()}
    error = KeyboardInterrupt() if failure == "ctrl-c" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing(*args, **kwargs):
        for argument in args:
            if hasattr(argument, "write"):
                argument.write(b"half")
            elif isinstance(argument, pathlib.Path) and argument.suffix == ".keras":
                argument.write_text("half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(execute, "plot_curves", lambda *args, **kwargs: None)  # drawing takes a second
        patch.setattr(*place, failing)
        status = resume(output_dir)
    assert whole(output_dir)
    if failure == "ctrl-c":
        how = (
            f"--resume --output_dir={output_dir} continues after the last whole epoch"
            if begun
            else "nothing was written"
        )
        assert status == 130 and one_sentence(capsys, f"^interrupted: {how}.$")
    else:
        after = r" The run in .* stopped; --resume continues it\." if begun else ""
        assert status == 1 and one_sentence(capsys, rf"^error: No space left on device\.{after}$")
    for path, content in before.items():
        if path.suffix in (".npz", ".json") or not begun:
            assert path.read_bytes() == content
    if failure == "ctrl-c":
        assert resume(output_dir) == 0


def test_ctrl_c_before_anything_is_written_leaves_no_directory(tmp_path, monkeypatch, capsys):
    def failing(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "write_json", failing)
    assert command_line(*FLAGS, f"--output_dir={tmp_path / 'run'}") == 130
    assert one_sentence(capsys, "^interrupted: nothing was written.$")
    assert not (tmp_path / "run").exists()


def test_a_damaged_newest_checkpoint_is_replaced_by_the_one_before(run_of, capsys):
    output_dir = run_of()
    (_, older), (_, newest) = list_checkpoints(output_dir / "checkpoints")
    for content in (newest.read_bytes()[:-100], b""):
        newest.write_bytes(content)
        assert resume(output_dir) == 0
        printed = capsys.readouterr()
        assert f"warning: {newest} is damaged." in printed.err
        assert "continues from epoch-0001.npz, an older checkpoint" in printed.err and ", 1 done," in printed.out
        (output_dir / "result.json").unlink()
    older.write_bytes(b"")
    newest.write_bytes(b"")
    assert resume(output_dir) == 1
    assert "every checkpoint in" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "result.json", "final.keras"])
def test_a_damaged_file_is_named(name, run_of, capsys):
    output_dir = run_of(stopped=False)
    content = (output_dir / name).read_bytes()
    (output_dir / name).write_bytes(content[: len(content) // 2] + (b"\n1,x\n" if name == "metrics.csv" else b""))
    assert resume(output_dir, "--eval_attack=untargeted") == 1
    assert one_sentence(capsys, f"^error: .*{name} is damaged.*: restore the file or remove it")


def test_a_finished_run_is_only_evaluated(run_of, capsys):
    output_dir = run_of(stopped=False)
    for _, path in list_checkpoints(output_dir / "checkpoints"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in output_dir.iterdir() if path.is_file()}
    assert resume(output_dir) == 0
    assert resume(output_dir, "--eval_attack=untargeted", "--eval_epsilon=0") == 0
    assert "after one untargeted step of 0 in units of 1/255" in capsys.readouterr().out
    result = execute.Result.read(output_dir)
    assert result.attacked_accuracy == pytest.approx(result.accuracy, abs=1e-6)
    # A later resume keeps what was evaluated.
    assert resume(output_dir) == 0
    assert execute.Result.read(output_dir) == result
    changed = {path.name for path in output_dir.iterdir() if path.is_file() and path.read_bytes() != before[path.name]}
    assert changed == {"result.json"} and not list_checkpoints(output_dir / "checkpoints")
    (output_dir / "final.keras").unlink()
    assert resume(output_dir) == 0
    capsys.readouterr()
    assert resume(output_dir, "--eval_attack=targeted") == 1
    assert one_sentence(capsys, "^error: output_dir must hold final.keras or a checkpoint for eval_attack")


def test_a_second_run_in_a_directory_is_refused(tmp_path, monkeypatch, capsys):
    """Both are prepared while the directory is empty."""
    output_dir, statuses = tmp_path / "run", []
    flags = (*FLAGS, "--epochs=1", f"--output_dir={output_dir}")
    train = execute._execute

    def second(run):
        if not statuses:
            statuses.append(None)
            statuses.append(command_line(*flags))
            assert resume(output_dir) == 1  # in use
        return train(run)

    monkeypatch.setattr(execute, "_execute", second)
    assert command_line(*flags) == 0
    assert statuses[1] == 1
    errors = capsys.readouterr().err.strip().split("\n")
    assert len(errors) == 2 and f"is in use by process {os.getpid()}" in errors[0], errors


def test_runs_that_start_in_the_same_second_get_their_own_directories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, names = TrainConfig.from_flags(), set()
    for process in (1, 2, 2):
        monkeypatch.setattr(prepare.os, "getpid", lambda process=process: process)
        path = prepare._fresh_directory(config)
        path.mkdir(parents=True)
        names.add(path)
    assert len(names) == 3


def test_a_run_that_another_finished_in_the_meantime_is_refused(run_of, capsys):
    output_dir = run_of()
    first, second = (prepare.prepare(config_of(output_dir)) for _ in range(2))
    assert execute.execute(first).complete
    with pytest.raises(ValueError, match="was changed by another run in the meantime: resume again"):
        execute.execute(second)


def config_of(output_dir):
    from train_runs import parsed_flags

    from tf_largebatch.train import config_from_flags

    return config_from_flags(parsed_flags("--resume", "--verbose=0", f"--output_dir={output_dir}"))


def test_a_run_that_diverges_says_so(tmp_path, capsys):
    output_dir = tmp_path / "run"
    flags = (*FLAGS, "--base_learning_rate=1e38", "--epochs=3", f"--output_dir={output_dir}")
    assert command_line(*flags) == 1
    assert one_sentence(capsys, "^error: the loss is (nan|inf) in epoch 1,")
    assert (output_dir / "curves.png").exists() and not (output_dir / "final.keras").exists()
    assert not (output_dir / "checkpoints").exists()


@pytest.mark.long
def test_a_run_that_diverged_on_the_evaluation_images_fails(tmp_path, monkeypatch, capsys):
    evaluate = keras.Model.evaluate

    def diverged(self, *args, **kwargs):
        return {**evaluate(self, *args, **kwargs), "loss": float("nan")}

    monkeypatch.setattr(keras.Model, "evaluate", diverged)
    output_dir = tmp_path / "run"
    assert command_line(*FLAGS, "--epochs=2", "--stop_after_epoch=1", f"--output_dir={output_dir}") == 0
    assert resume(output_dir) == 1
    assert one_sentence(capsys, "^error: the test loss is nan after the last epoch: lower base_learning_rate")
    assert not (output_dir / "final.keras").exists() and not (output_dir / "result.json").exists()


@pytest.mark.long
def test_the_command_of_the_readme(tmp_path):
    """Without a directory it makes one under runs; without a terminal it prints one line an epoch."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tf_largebatch.train", "--epochs=1", "--optimizer=sgd"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"accuracy .* val accuracy ", done.stdout)) == 1 and "\r" not in done.stdout
    assert "test accuracy 0." in done.stdout and "after 2 updates of 512 images" in done.stdout
    (run,) = os.listdir(tmp_path / "runs")
    assert run.startswith("digits-resnet8-sgd-512-")


@pytest.mark.long
def test_a_real_ctrl_c(tmp_path):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tf_largebatch.train", "--optimizer=sgd", "--epochs=100000", "--output_dir=run"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    )
    assert process.stdout.readline().startswith("digits: ")  # training begins: its step is traced now
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in error
    assert "interrupted: --resume --output_dir=run continues " in error
    assert whole(tmp_path / "run") and np.all([path.stat().st_size for path in (tmp_path / "run").iterdir()])
