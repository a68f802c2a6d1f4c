r"""Model Garden's training driver with the experiments of this plug-in.

python -m tf_largebatch.model_garden.train --experiment=clars_resnet_imagenet --mode=train_and_eval \
        --model_dir=... --config_file=official_configs/... --params_override=...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from official.common import flags as tfm_flags
from official.core import train_utils
from official.vision import train as model_garden_driver

from tf_largebatch import interrupts
from tf_largebatch.model_garden import (
    command_line,
    registry_imports,  # noqa: F401  (it registers)
)
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line


def main(argv: Sequence[str]) -> int:
    """Runs Model Garden's driver.

    Returns:
        The exit status: 0, or 1 after one sentence on stderr, `error: ...`, if the configuration, the data, the
        directory or a checkpoint cannot be used, or if training diverged; 130 after Ctrl-C.
    """
    # Of what is refused before it begins no directory is left. Model Garden writes the configuration before it reads
    # the data.
    is_new = command_line.is_missing(flags.FLAGS.model_dir)
    try:
        with interrupts.raising(), interrupts.kept():
            params = _resolved(flags.FLAGS)
            command_line.check_mode(flags.FLAGS.mode)
            command_line.check_devices(params.runtime)
            command_line.check_model_dir(flags.FLAGS.model_dir, flags.FLAGS.mode, params.task.init_checkpoint)
            model_garden_driver.main(argv)
    except Exception as error:
        sentence = command_line.explained(error, flags.FLAGS.model_dir)
        if sentence is None:
            raise
        if is_new and isinstance(error, ConfigurationError):
            command_line.remove_unused(flags.FLAGS.model_dir)
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command continues from the newest checkpoint.", file=sys.stderr)
        return interrupts.INTERRUPTED
    return 0


def _resolved(flags_obj: Any) -> Any:
    """Returns the configuration that the flags give.

    Raises:
        ConfigurationError: If there is none that can be trained with.
    """
    for file in flags_obj.config_file or []:
        command_line.check_config_file(file)
    command_line.check_override(flags_obj.params_override)
    try:
        return train_utils.parse_configuration(flags_obj, print_return=False)
    except (LookupError, TypeError, ValueError) as error:
        raise ConfigurationError(one_line(error)) from error


if __name__ == "__main__":
    tfm_flags.define_flags()
    flags.mark_flags_as_required(["experiment", "mode", "model_dir"])
    app.run(main)
