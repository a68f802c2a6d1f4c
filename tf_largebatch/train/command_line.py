"""The command line: a flag for every argument of `TrainConfig`."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from tf_largebatch.callbacks import TrainingDiverged
from tf_largebatch.train import run_directory
from tf_largebatch.train.config import TrainConfig
from tf_largebatch.train.run import execute, prepare


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every argument of `TrainConfig`."""
    types = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = next(t for t in (typing.get_args(types[field.name]) or (types[field.name],)) if t is not type(None))
        options = {"default": field.default, "help": field.metadata["help"], "flag_values": flag_values}
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, enum_values=field.metadata["choices"], **options)
        else:
            define: Any = {
                bool: flags.DEFINE_bool,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }[kind]
            define(field.name, **options)


def config_from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> TrainConfig:
    """The arguments given as flags; with --resume the others come from the run's directory."""
    given: dict[str, Any] = {field.name: flag_values[field.name].value for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**given)
    if config.resume and config.output_dir:
        stored = run_directory.read_arguments(config.output_dir)
        known = {name: stored[name] for name in stored if name in given and not flag_values[name].present}
        config = dataclasses.replace(config, **known)
    return config


def main(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
    """Runs the command line; returns the exit status."""
    try:
        if len(argv) > 1:
            raise ValueError(f"every argument must be a flag (--name=value); received {argv[1]!r}.")
        run = prepare(config_from_flags(flag_values))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        execute(run)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: --resume continues after the last whole epoch", file=sys.stderr)
        return 130
    return 0


def _quiet_main(argv: Sequence[str]) -> int:
    # absl shows what tensorflow_datasets logs at INFO unless told otherwise; it would break the progress bar.
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    return main(argv)
