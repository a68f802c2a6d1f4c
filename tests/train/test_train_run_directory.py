"""The directory of a run: the lock, which directories are refused, and damaged files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tf_largebatch.files import TEMPORARY, write_json
from tf_largebatch.train import run_directory
from tf_largebatch.train.run_directory import DirectoryRefused, check_free, check_new, check_writable, held

# By the operating system's own means: importing the package would take seconds.
HOLDER = """
import fcntl, json, os, pathlib, sys, time
path = pathlib.Path(sys.argv[1])
path.mkdir(parents=True, exist_ok=True)
descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(descriptor, fcntl.LOCK_EX)
os.write(descriptor, json.dumps({"pid": os.getpid(), "host": "elsewhere"}).encode())
(path / ".tmp-1-config.json").write_text("{")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_directory_in_use_is_refused_until_its_process_is_dead(tmp_path, holder):
    output_dir = tmp_path / "run"
    refused = re.escape(f"output_dir={str(output_dir)!r} is in use by process {holder.pid} on elsewhere: wait until")
    for entering in (check_free, lambda path: held(path).__enter__()):
        with pytest.raises(DirectoryRefused, match=refused):
            entering(output_dir)
    # What the holder has begun to write stays while it lives.
    assert (output_dir / ".tmp-1-config.json").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    check_free(output_dir)
    check_new(output_dir)
    with held(output_dir):
        assert str(os.getpid()) in (output_dir / run_directory.LOCK).read_text()
        assert os.listdir(output_dir) == [run_directory.LOCK]
        with pytest.raises(DirectoryRefused, match=f"in use by process {os.getpid()}"):
            check_free(output_dir)
    assert os.listdir(output_dir) == []


def test_a_directory_that_nothing_was_written_to_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "a" / "run"):
        raise KeyboardInterrupt
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "mine").mkdir()
    with held(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


def test_leftovers_of_a_killed_write_are_swept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in (f"{TEMPORARY}1-metrics.csv", f"checkpoints/{TEMPORARY}1-epoch-0001.npz", "mine.txt"):
        (tmp_path / name).write_text("half")
    with held(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "mine.txt"] and not os.listdir(tmp_path / "checkpoints")


def test_only_one_of_many_processes_gets_a_directory(tmp_path):
    """They start together, on a lock file that a dead process left."""
    (tmp_path / run_directory.LOCK).write_text("")
    begin = time.time() + 1.0
    program = HOLDER.replace("fcntl.LOCK_EX", "fcntl.LOCK_EX | fcntl.LOCK_NB").replace(
        "time.sleep(60)", "time.sleep(2)"
    )
    program = program.replace("path.mkdir", f"time.sleep(max({begin} - time.time(), 0)); path.mkdir")
    command = [sys.executable, "-c", program, str(tmp_path)]
    many = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(4)]
    assert sorted(process.communicate()[0] for process in many) == ["", "", "", "held\n"]


@pytest.mark.parametrize(("file", "path"), [("file", "file"), ("file", "file/run")])
def test_a_file_is_no_directory(file, path, tmp_path):
    (tmp_path / file).write_text("precious")
    with pytest.raises(DirectoryRefused, match=r"output_dir must be a directory, and .*/file is a file; received"):
        check_writable(tmp_path / path)
    assert (tmp_path / file).read_text() == "precious"


def test_a_directory_without_permission_is_refused(tmp_path, monkeypatch):
    # Not by chmod: the superuser may write everywhere.
    monkeypatch.setattr(run_directory.os, "access", lambda path, mode: False)
    with pytest.raises(DirectoryRefused, match=f"output_dir must be writable, and {tmp_path} is not; received"):
        check_writable(tmp_path / "a" / "b")


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(DirectoryRefused, match="is not empty: name another directory"):
        check_new(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DirectoryRefused, match="holds a run: add --resume to continue it, or name another directory"):
        check_new(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "output_dir must be a directory with a run's config.json to resume from"),
        ("", r"config\.json is damaged"),
        ('{"arguments"', r"config\.json is damaged"),
        ("{}", r"config\.json is damaged"),
        ('{"arguments": {"batch_size": "many"}}', "batch_size must be of type int in .*config.json"),
        ('{"arguments": {"resume": 1}}', "resume must be of type bool in .*config.json"),
    ],
)
def test_a_damaged_configuration_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        run_directory.read_arguments(tmp_path)
    assert "\n" not in str(raised.value)


def test_the_first_argument_that_differs_is_named(tmp_path):
    write_json(tmp_path / "config.json", {"arguments": {"seed": 0, "batch_size": 8}})
    run_directory.check_same_run(tmp_path, {"seed": 0, "batch_size": 8})
    with pytest.raises(DirectoryRefused, match="holds another run, with batch_size=8; received batch_size=9"):
        run_directory.check_same_run(tmp_path, {"seed": 0, "batch_size": 9})
