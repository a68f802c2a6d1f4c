"""Runs of the training program that meet a fault: killed, interrupted, or without a disk, at a moment that is named.

`Server` starts this file as a program. It imports everything once and forks for every run, so that a run costs its
training alone, and SIGKILL ends a real process. A fault is a dictionary:

    {"at": "write", "path": PATTERN, "number": n}   before the n-th change of a file whose path matches: opened to be
                                                    written, renamed, removed; of a directory: made
    {"at": "byte", "path": PATTERN, "number": n}    when byte n of such a file is written
    {"at": "batch", "number": n}                    after the n-th update of the process
    {"at": "micro-batch", "number": n}              in the n-th forward pass of the process
    {"at": "time", "seconds": s}                    so long after the process began to write
    {"at": "disk", "kibibytes": n}                  the directory's file system is so small; later it is larger, the run
                                                    is resumed, and its directory copied to `kept`
    {"at": "user", "number": n}                     the process is that user's

with "signal", which is "SIGKILL" where it is left out. The operating system kills a process that writes past a limit by
SIGXFSZ, which stands for SIGKILL at a byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TESTS = pathlib.Path(__file__).parents[1]
NOT_PERMITTED = 77  # the exit status of a process that may not mount a file system
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Called with a word and a path before a file or directory is changed; None for nothing.
_watch: Callable[[str, str], None] | None = None
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Calls what watches: Python announces every change of a file to audit hooks, which cannot be removed."""
    global _watch
    if _watch is None or event not in ("open", "os.rename", "os.remove", "os.mkdir"):
        return
    path = arguments[1] if event == "os.rename" else arguments[0]
    if isinstance(path, int) or (event == "open" and not arguments[2] & WRITING):
        return
    watch, _watch = _watch, None  # what it does itself is not announced
    try:
        watch(event.removeprefix("os."), os.fsdecode(path))
    finally:
        _watch = watch


@contextlib.contextmanager
def watching(watch: Callable[[str, str], None]) -> Iterator[None]:
    """Within it `watch(word, path)` is called before each change of a file: "open", "rename", "remove" or "mkdir".

    An exception that it raises takes the change's place.
    """
    global _watch, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    _watch = watch
    try:
        yield
    finally:
        _watch = None


class Server:
    """Starts runs of the training program; a context manager.

    Args:
        directory: Where the runs' output is kept.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory, self._number = directory, 0
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
        # Its own, so that no killed process leaves a half-written program to other tests.
        environment["JAX_COMPILATION_CACHE_DIR"] = str(directory / "jax_cache")
        paths = (TESTS.parent, TESTS, pathlib.Path(__file__).parent)
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        with open(directory / "server.log", "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=directory,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def run(self, *flags: str, fault: dict[str, Any] | None = None) -> dict[str, Any]:
        """Trains; returns {"status": exit status, "signal": name or None, "writes": [...], "out": ..., "err": ...}."""
        return self.run_together([flags], fault)[0]

    def run_together(self, many: list[tuple[str, ...]], fault: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Trains at the same time in several processes, with the same fault in each."""
        self._number += 1
        stem = self._directory / f"launch-{self._number}"
        request = {"runs": [list(flags) for flags in many], "fault": fault, "stem": str(stem)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self._directory / "server.log").read_text()
        found = json.loads(answer)
        for number, one in enumerate(found):
            for word in ("out", "err", "writes"):
                path = pathlib.Path(f"{stem}-{number}.{word}")
                one[word] = path.read_text() if path.exists() else ""
                path.unlink(missing_ok=True)
            one["writes"] = [line.split(" ", 1) for line in one["writes"].splitlines()]
        return found


def _serve() -> None:
    import matplotlib.figure
    import sklearn.datasets
    import train_runs

    from tf_largebatch import models
    from tf_largebatch.data import batches
    from tf_largebatch.plots import adversarial_images, run_files

    # What a run imports later is imported once, here.
    assert matplotlib.figure and sklearn.datasets and adversarial_images and run_files
    if batches.tensorflow_is_installed():
        import tensorflow as tf

        assert tf.data
    models.NETWORKS.update(tiny=train_runs.tiny_network, linear=train_runs.linear_network)
    for line in sys.stdin:
        request = json.loads(line)
        fault = request["fault"]
        began = f"{request['stem']}.began"
        pids = []
        for number, flags in enumerate(request["runs"]):
            pid = os.fork()
            if not pid:
                _run(flags, fault, f"{request['stem']}-{number}", began)
            pids.append(pid)
        if fault is not None and fault["at"] == "time":
            _signal_after(pids, fault, began)
        found = []
        for pid in pids:
            _, status = os.waitpid(pid, 0)
            killed = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else None
            found.append({"status": None if killed else os.WEXITSTATUS(status), "signal": killed})
        pathlib.Path(began).unlink(missing_ok=True)
        print(json.dumps(found), flush=True)


def _signal_after(pids: list[int], fault: dict[str, Any], began: str) -> None:
    while not os.path.exists(began):
        if os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)
    time.sleep(fault["seconds"])
    for pid in pids:  # not waited for yet: it is no other process's number
        os.kill(pid, signal.Signals[fault.get("signal", "SIGKILL")])


def _run(flags: list[str], fault: dict[str, Any] | None, stem: str, began: str) -> None:
    for descriptor, word in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{stem}.{word}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.close(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    import train_runs

    from tf_largebatch import train

    writes = os.open(f"{stem}.writes", os.O_WRONLY | os.O_CREAT)
    output_dir = next((flag.partition("=")[2] for flag in flags if flag.startswith("--output_dir=")), "")
    act = _die(fault)
    status = 1
    # As `python -m tf_largebatch.train` does, but for the import, which was done before.
    try:
        with watching(lambda word, path: _at_write(word, path, fault, act, writes, output_dir, began)):
            _prepare_fault(fault, act)
            if fault is not None and fault["at"] == "disk":
                status = _on_a_small_disk(flags, pathlib.Path(output_dir), fault["kibibytes"])
            else:
                status = train.main(["train"], train_runs.parsed_flags(*flags))
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _die(fault: dict[str, Any] | None) -> Callable[[], None]:
    kind = signal.Signals[(fault or {}).get("signal", "SIGKILL")]
    return lambda: os.kill(os.getpid(), kind)


_count = 0


def _at_write(
    word: str,
    path: str,
    fault: dict[str, Any] | None,
    act: Callable[[], None],
    writes: int,
    output_dir: str,
    began: str,
) -> None:
    """Notes a change, and dies before the one that is asked for."""
    global _count
    if not output_dir or not path.startswith(output_dir):
        return
    os.write(writes, f"{word} {path[len(output_dir) :]}\n".encode())
    if not os.path.exists(began):
        pathlib.Path(began).touch()
    if fault is None or fault["at"] not in ("write", "byte") or not re.search(fault["path"], path[len(output_dir) :]):
        return
    if fault["at"] == "write":
        _count += 1
        if _count == fault["number"]:
            act()
    elif word == "open":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["number"], resource.RLIM_INFINITY))


def _on_a_small_disk(flags: list[str], output_dir: pathlib.Path, kibibytes: int) -> int:
    """Trains on a file system of this size, and resumes once it is larger; prints "status N" for each.

    No other process sees the file system.
    """
    import train_runs

    from tf_largebatch import train

    library = ctypes.CDLL(None, use_errno=True)
    new_namespace, private, again = 0x00020000, 0x00004000 | (1 << 18), 1 << 5

    def mount(options: bytes, flags: int) -> int:
        return library.mount(b"tmpfs", os.fsencode(output_dir.parent), b"tmpfs", flags, options)

    kept = output_dir.parent / "kept"
    kept.mkdir()
    target = os.open(kept, os.O_RDONLY)
    if library.unshare(new_namespace) or library.mount(b"none", b"/", None, private, None):
        return NOT_PERMITTED
    if mount(f"size={kibibytes}k".encode(), 0):
        return NOT_PERMITTED
    print(f"status {train.main(['train'], train_runs.parsed_flags(*flags))}")
    assert not mount(b"size=64m", again)
    resumed = ["--resume", "--verbose=0"] if (output_dir / "config.json").exists() else flags
    print(f"status {train.main(['train'], train_runs.parsed_flags(*resumed, f'--output_dir={output_dir}'))}")
    shutil.copytree(output_dir, f"/proc/self/fd/{target}", dirs_exist_ok=True)
    return 0


def _prepare_fault(fault: dict[str, Any] | None, act: Callable[[], None]) -> None:
    if fault is not None and fault["at"] == "user":
        os.setuid(fault["number"])
    if fault is None or fault["at"] not in ("batch", "micro-batch"):
        return
    import keras

    left = [fault["number"]]

    def happened(*_: Any, **__: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            act()

    if fault["at"] == "batch":
        from tf_largebatch.callbacks import MetricsRecorder

        MetricsRecorder.on_train_batch_end = happened
        return
    # Pooling and flattening have no weights: what they compute is as before.
    for kind in (keras.layers.Flatten, keras.layers.GlobalAveragePooling2D):
        kind.call = _announced(kind.call, happened)


def _announced(call: Callable[..., Any], happened: Callable[..., None]) -> Callable[..., Any]:
    import keras

    def announced(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if keras.backend.is_keras_tensor(x) or not hasattr(x, "dtype"):
            return call(self, x, *args, **kwargs)
        if keras.backend.backend() == "jax":
            import jax

            jax.debug.callback(happened)
            return call(self, x, *args, **kwargs)
        import tensorflow as tf

        with tf.control_dependencies([tf.py_function(happened, [], [])]):
            return call(self, tf.identity(x), *args, **kwargs)

    return announced


if __name__ == "__main__":
    _serve()
