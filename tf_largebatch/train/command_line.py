"""The command line: a flag for every argument of `TrainConfig`, one sentence and an exit status for every failure."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging

from tf_largebatch import interrupts
from tf_largebatch.callbacks import TrainingDiverged
from tf_largebatch.check import reason_of, require
from tf_largebatch.files import DamagedFile, local_path
from tf_largebatch.train import run_directory
from tf_largebatch.train.config import FLAGS, LAYOUT, TrainConfig
from tf_largebatch.train.execute import execute
from tf_largebatch.train.prepare import Run, prepare
from tf_largebatch.training import processes
from tf_largebatch.training.memory_limit import OutOfMemory

FAILED = 1
_DEFINE: dict[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


class _NumberOrWord(flags.ArgumentParser):
    """Reads an integer, or one of some words."""

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self._words = words
        self.syntactic_help = f"an integer, or {' or '.join(words)}"

    def parse(self, argument: str | int) -> str | int:
        """Returns the integer or the word."""
        if argument in self._words:
            return argument
        try:
            return int(argument)
        except ValueError:
            raise ValueError(f"{argument!r} must be {self.syntactic_help}") from None

    def flag_type(self) -> str:
        """Returns what a value is."""
        return self.syntactic_help


def define_flags(flag_values: flags.FlagValues = flags.FLAGS, names: Sequence[str] = tuple(FLAGS)) -> None:
    """Defines a flag for every argument of `TrainConfig`, or for some of them."""
    for name in names:
        one = FLAGS[name]
        options = {"default": one.default, "help": one.help, "flag_values": flag_values}
        if one.words:
            flags.DEFINE(_NumberOrWord(one.words), name, serializer=flags.ArgumentSerializer(), **options)
        elif one.choices:
            flags.DEFINE_enum(name, enum_values=one.choices, **options)
        else:
            _DEFINE[one.type](name, **options)
    if tuple(names) == tuple(FLAGS):
        flags.DEFINE_string(
            "config",
            None,
            "A .json or .yaml file of flags, such as the config.json of a run to repeat; flags on the command line "
            "come first.",
            flag_values=flag_values,
        )


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> TrainConfig:
    """Returns the arguments given as flags; the others come from --config, or from the directory of --resume."""
    config = TrainConfig.from_flags(**{name: flag_values[name].value for name in FLAGS})
    file = flag_values["config"].value
    if file is not None:
        require(not config.run.resume, "config", file, "left out with resume", "the run's directory has its arguments")
        given = run_directory.read_config(file)
        return config.with_flags(**{name: value for name, value in given.items() if not flag_values[name].present})
    if config.run.resume and config.run.output_dir:
        stored = run_directory.read_arguments(local_path(config.run.output_dir, "output_dir"))
        names = [name for name in FLAGS if name in stored and name not in LAYOUT]
        missing = {name: stored[name] for name in names if not flag_values[name].present}
        config = config.with_flags(**missing)
    return config


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the command line; returns the exit status."""
    prepared: list[Run] = []
    try:
        with interrupts.raising():
            return _main(argv, flag_values, prepared)
    except KeyboardInterrupt:
        return _interrupted(prepared[0].output_dir if prepared else None)


def _main(argv: Sequence[str], flag_values: flags.FlagValues, prepared: list[Run]) -> int:
    """Does what `main` does but for Ctrl-C; adds the run to `prepared` when it may begin to write."""
    try:
        require(len(argv) < 2, "every argument", argv[-1], "a flag, --name=value")
        with interrupts.kept():
            prepared.append(prepare(config_from_flags(flag_values)))
    except ValueError as error:
        return _failed(str(error))
    except _system_errors() as error:
        return _failed(_reason(error))
    output_dir = prepared[0].output_dir
    try:
        with interrupts.kept():
            execute(prepared[0])
    except (TrainingDiverged, run_directory.DirectoryRefused, DamagedFile) as error:
        return _failed(str(error))
    except OutOfMemory as error:
        return _failed(f"{error} The run that takes it needs another output_dir.")
    except _system_errors() as error:
        stopped = f" The run in {output_dir} stopped; --resume continues it." if _has_begun(output_dir) else ""
        return _failed(_reason(error) + stopped)
    return 0


def reported(argv: Sequence[str], program: Callable[[], None]) -> int:
    """Runs a program that takes flags alone; prints its failure in one sentence and returns the exit status.

    Args:
        argv: What is left of the command line: the program's name.
        program: The program.
    """
    try:
        with interrupts.raising(), interrupts.kept():
            require(len(argv) < 2, "every argument", argv[-1], "a flag, --name=value")
            program()
    except ValueError as error:
        return _failed(str(error))
    except _system_errors() as error:
        return _failed(_reason(error))
    except KeyboardInterrupt:
        return _interrupted(None)
    return 0


def quiet_main(argv: Sequence[str]) -> int:
    """Runs `main` without the log messages of tensorflow_datasets, which break the progress bar."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    status = main(argv)
    if status:
        processes.leave(status)
    return status


def _system_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of the operating system, of TensorFlow and of JAX: disks, networks, memory, devices."""
    found: list[type[Exception]] = [OSError, MemoryError, processes.ProcessLost]
    if tensorflow := sys.modules.get("tensorflow"):
        found.append(tensorflow.errors.OpError)
    if jax := sys.modules.get("jax"):
        found.append(jax.errors.JaxRuntimeError)
    return tuple(found)


def _failed(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return FAILED


def _interrupted(output_dir: os.PathLike[str] | None) -> int:
    how = "nothing was written"
    if output_dir is not None and _has_begun(output_dir):
        whole = any(os.scandir(checkpoints)) if os.path.isdir(checkpoints := _checkpoints(output_dir)) else False
        where = "after the last whole epoch" if whole else "from the beginning, since no epoch was whole"
        how = f"--resume --output_dir={shlex.quote(os.fspath(output_dir))} continues {where}"
    print(f"\ninterrupted: {how}.", file=sys.stderr)
    return interrupts.INTERRUPTED


def _checkpoints(output_dir: os.PathLike[str]) -> str:
    return os.path.join(output_dir, run_directory.CHECKPOINTS)


def _has_begun(output_dir: os.PathLike[str] | None) -> bool:
    return output_dir is not None and os.path.exists(os.path.join(output_dir, run_directory.CONFIG))


def _reason(error: Exception) -> str:
    """Returns an error's message as a sentence, with the file's name."""
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    return f"{reason_of(error)}{where}."
