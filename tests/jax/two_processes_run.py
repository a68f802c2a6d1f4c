"""One of several processes that train together; or, alone, the run that they must equal.

MODEL is clars, conadv, or clars with kernels that are split: "parts" over the two devices of each process, "parts of
all" over the devices of all processes, each of which has the whole batch.

python tests/jax/two_processes_run.py FOLDER MODEL PROCESS PROCESSES PORT EPOCHS [DIES_IN_EPOCH]
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

import keras
import numpy as np
from keras import layers

import tf_largebatch as lb
from tf_largebatch.callbacks import RunCheckpoint, load_checkpoint
from tf_largebatch.callbacks.checkpoint import list_checkpoints
from tf_largebatch.training import processes

FOLDER, MODEL = pathlib.Path(sys.argv[1]), sys.argv[2]
PROCESS, PROCESSES, PORT, EPOCHS, DIES = map(int, [*sys.argv[3:], "-1"][:5])
BATCH, EXAMPLES = 16, 64
SPLIT = MODEL.startswith("parts") and PROCESSES > 1
SHARES = 1 if MODEL == "parts of all" else PROCESSES  # of a batch


class Death(keras.callbacks.Callback):
    """Kills the process in the middle of an epoch, as a host ends that loses its power."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == DIES and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def distribution() -> keras.distribution.Distribution:
    if not SPLIT:
        return keras.distribution.DataParallel(auto_shard_dataset=False)
    shape = (SHARES, len(keras.distribution.list_devices()) // SHARES)
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), keras.distribution.list_devices())
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*conv.*kernel"] = (None, None, None, "model")
    layouts[".*head.*kernel"] = ("model", None)
    arguments = {"layout_map": layouts, "batch_dim_name": "batch", "auto_shard_dataset": False}
    return keras.distribution.ModelParallel(**arguments)


def compiled() -> lb.LargeBatchModel:
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(), layers.ReLU()]
    stack += [layers.Flatten(), layers.Dense(5, name="head")]
    net = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    if MODEL == "conadv":
        model = lb.ConAdvModel(net, epsilon=4.0, value_range=(-4.0, 4.0), staleness=2, seed=3)
    else:
        model = lb.LargeBatchModel(net)
    model.compile(
        lb.CLARS(0.1, eta=0.01, max_rate=None, unadapted_rate_factor=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


if __name__ == "__main__":
    if PROCESSES > 1:
        keras.distribution.initialize(f"127.0.0.1:{PORT}", num_processes=PROCESSES, process_id=PROCESS)
        keras.distribution.set_distribution(distribution())
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(EXAMPLES, 8, 8, 3)).astype("float32"), rng.integers(0, 5, EXAMPLES)
    own = BATCH // SHARES  # a process passes its share of every batch
    rows = np.arange(EXAMPLES).reshape(-1, SHARES, own)[:, PROCESS % SHARES].reshape(-1)
    model = compiled()
    checkpoints = list_checkpoints(FOLDER)
    done = load_checkpoint(checkpoints[-1][1], model) if checkpoints else 0
    callbacks = [RunCheckpoint(FOLDER), Death()]
    arguments = {"initial_epoch": done, "epochs": EPOCHS, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    model.fit(x[rows], y[rows], batch_size=own, **arguments)
    if SPLIT:
        kernel = model.trainable_variables[0].value
        assert kernel.addressable_shards[0].data.shape[-1] * 2 * PROCESSES // SHARES == kernel.shape[-1]
    found = [processes.whole(v.value) for v in model.weights]
    np.savez(FOLDER / f"weights_{PROCESS}_of_{PROCESSES}.npz", *found)
