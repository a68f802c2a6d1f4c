"""Compiles training steps of a small convolutional network for four TPU chips and prints what the compiler says.

A program of its own, for libtpu wants a process of its own. Each line it prints is the JSON of one step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import tpu_compiler

BATCH, PIXELS, CLASSES, REPLICAS = 16, 32, 10, 4


def network():
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((PIXELS, PIXELS, 3)),
            layers.Conv2D(16, 7, strides=2, padding="same"),  # the first layer's form
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, padding="same"),  # pairs of columns
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(160, 1),  # pointwise
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(160, 3, strides=2, padding="same"),  # columns
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )


def step(name):
    """A training step, the specifications of its arguments and the number of tensors it trains."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_largebatch

    keras.config.set_dtype_policy("mixed_bfloat16")
    adversarial = name.startswith("conadv")
    wrapper = tf_largebatch.ConAdvModel if adversarial else tf_largebatch.LargeBatchModel
    micro_batch_size = BATCH // 2 if name.endswith("micro_batches") else None
    norm_examples = 4 if name.endswith("sampled") else None
    model = wrapper(network(), norm_examples=norm_examples, micro_batch_size=micro_batch_size)
    plain = name == "plain"
    optimizer = (
        keras.optimizers.SGD(0.1, momentum=0.9)
        if plain
        else tf_largebatch.CLARS(0.1, eta=0.01, max_rate=None, unadapted_rate_factor=1.0)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=True)
    optimizer.build(model.trainable_variables)
    images, labels = tf.TensorSpec((BATCH, PIXELS, PIXELS, 3)), tf.TensorSpec((BATCH,), tf.int32)
    if not adversarial:
        train = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True, autograph=False)
        return train, [images, labels], len(model.trainable_variables)
    model.get_ready((np.zeros((2, PIXELS, PIXELS, 3), np.float32), np.zeros(2, np.int32)))

    def train_and_attack(x, y, copies, next_x, next_y):
        next_copies = model.attack_next((next_x, next_y))
        return model.train_on_pair((x, y), copies), next_copies

    arguments = [images, labels, images, images, labels]
    train = tf.function(train_and_attack, jit_compile=True, autograph=False)
    return train, arguments, len(model.trainable_variables)


def main():
    from tf_largebatch.norms.device import compiling_for

    for name in sys.argv[1:]:
        with compiling_for("tpu"), tpu_compiler.all_reduce_among(REPLICAS):
            train, arguments, tensors = step(name)
            stablehlo = tpu_compiler.lower(train, arguments)
        compiled = tpu_compiler.compile_for_tpu(stablehlo, "v5e:2x2", REPLICAS)
        report = {
            "name": name,
            "device_kind": compiled.device_kind,
            "trained_tensors": tensors,
            "flops": compiled.flops,
            "peak_bytes": compiled.peak_bytes,
            "collectives": compiled.collectives,
            "host_calls": compiled.host_calls(),
            "dynamic_shapes": compiled.dynamic_shapes(),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
