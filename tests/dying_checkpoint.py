"""A checkpoint callback that kills its process, for the tests of several workers.

With the environment variable DIE_IN_EPOCH the process kills itself, as a host ends that loses its power, in the middle
of that epoch.
"""

from __future__ import annotations

import os
import signal

from tf_largebatch import callbacks

DIE_IN_EPOCH = int(os.environ.get("DIE_IN_EPOCH", "-1"))


class DyingCheckpoint(callbacks.RunCheckpoint):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch + 1 == DIE_IN_EPOCH and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
