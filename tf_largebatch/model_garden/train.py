r"""The host's training driver with the experiments of this plug-in.

python -m tf_largebatch.model_garden.train --experiment=clars_resnet_imagenet --mode=train_and_eval \
        --model_dir=... --config_file=official_configs/... --params_override=...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags
from official.common import flags as tfm_flags
from official.core import train_utils
from official.vision import train as host

from tf_largebatch.model_garden import registry_imports  # noqa: F401  (it registers)
from tf_largebatch.model_garden.refusals import ConfigurationError


def main(argv: Sequence[str]) -> int:
    """Runs the host's driver; a configuration that cannot work ends in one sentence and status 1."""
    try:
        try:
            train_utils.parse_configuration(flags.FLAGS, print_return=False)
        except (LookupError, ValueError) as error:
            raise ConfigurationError(error.args[0] if error.args else str(error)) from error
        host.main(argv)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    tfm_flags.define_flags()
    flags.mark_flags_as_required(["experiment", "mode", "model_dir"])
    app.run(main)
