"""The command line with a model that compiles quickly: a process of the multi-worker tests.

With the environment variable DIE_IN_EPOCH the process kills itself, as a pre-empted host would end, in the middle of
that epoch.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from absl import app

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from train_runs import tiny_network

from tf_largebatch import callbacks, models, train
from tf_largebatch.train import execute

DIE_IN_EPOCH = int(os.environ.get("DIE_IN_EPOCH", "-1"))


class DyingCheckpoint(callbacks.RunCheckpoint):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch + 1 == DIE_IN_EPOCH and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    models.NETWORKS["tiny"] = tiny_network
    execute.RunCheckpoint = DyingCheckpoint
    train.define_flags()
    app.run(train.main)
