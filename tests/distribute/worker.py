"""The command line with a model that compiles quickly: a process of the multi-worker tests.

With the environment variable DIE_IN_EPOCH the process kills itself, as a pre-empted host would end, in the middle of
that epoch.
"""

from __future__ import annotations

import os
import signal

import keras
from absl import app

from tf_largebatch import models, train

DIE_IN_EPOCH = int(os.environ.get("DIE_IN_EPOCH", "-1"))


def tiny(image_shape, num_classes):
    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(8, 3, 2, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(num_classes, dtype="float32", name="logits")(x))


class DyingCheckpoint(train.RunCheckpoint):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch + 1 == DIE_IN_EPOCH and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    models._MODELS["tiny"] = tiny
    train.RunCheckpoint = DyingCheckpoint
    train.define_flags()
    app.run(train.main)
