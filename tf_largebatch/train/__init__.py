"""Trains an image classifier: `python -m tf_largebatch.train --help`.

Without flags: the digits, batches of 512, CLARS without warmup. What a run leaves in its directory is listed
in `run_directory.py`. The final model returns logits of standardised images; how to standardise them is in
`config.json` under `dataset`. It is a plain Keras model:

    model = keras.models.load_model("final.keras")      # this package is not needed

CLARS trains inside `LargeBatchModel`, which measures the per-example gradient norms; so does every optimizer
with --noise_scale, or with --micro_batch_size, which it works off. Other runs use `keras.Model.fit` on the bare model.
"""

from tf_largebatch.train.command_line import config_from_flags, define_flags, main
from tf_largebatch.train.config import TrainConfig
from tf_largebatch.train.run import Result, Run, execute, prepare, train

__all__ = ["Result", "Run", "TrainConfig", "config_from_flags", "define_flags", "execute", "main", "prepare", "train"]
