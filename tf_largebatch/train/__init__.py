"""Trains an image classifier: `python -m tf_largebatch.train --help`.

Without flags it trains on the digits, in batches of 512, with CLARS and no warmup. `run_directory` lists what a run
leaves in its directory. The final model returns logits of standardized images; `config.json` says under `dataset` how
to standardize them. It is a plain Keras model:

    model = keras.models.load_model("final.keras")      # without this package

CLARS trains inside `LargeBatchModel`, which measures the per-example gradient norms. Other optimizers do so with
--noise_scale, which needs the norms, and with --micro_batch_size. All other runs use `keras.Model.fit` on the network.

The way through the modules: `command_line` makes a `TrainConfig` (`config`, with sections for each part) from flags;
`resolve` checks it and fills in defaults; `prepare` builds everything; `execute` trains; `report` says what happened.
"""

from tf_largebatch.train.command_line import config_from_flags, define_flags, main
from tf_largebatch.train.config import TrainConfig
from tf_largebatch.train.execute import train
from tf_largebatch.train.prepare import Run
from tf_largebatch.train.result import Result

__all__ = ["Result", "Run", "TrainConfig", "config_from_flags", "define_flags", "main", "train"]
