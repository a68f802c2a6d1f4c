"""Compiles JAX's training steps of a small convolutional network for four TPU chips that share a batch.

A program of its own, for libtpu wants a process of its own. Each line it prints is the JSON of one step.
"""

from __future__ import annotations

import json
import sys

from small_steps import BATCH, PIXELS, REPLICAS, network, tpu_compiler


def step(name):
    """The step, the shapes of its state and of its data, and the number of tensors it trains."""
    import jax
    import jax.numpy as jnp
    import keras

    import tf_largebatch

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = tf_largebatch.LargeBatchModel(network(), norm_examples=4 if name == "clars_sampled" else None)
    plain = name == "plain"
    optimizer = (
        keras.optimizers.SGD(0.1, momentum=0.9)
        if plain
        else tf_largebatch.CLARS(0.1, eta=0.01, max_rate=None, unadapted_rate_factor=1.0)
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    optimizer.build(model.trainable_variables)
    groups = model.trainable_variables, model.non_trainable_variables, optimizer.variables, model.metrics_variables
    state = tuple([jax.ShapeDtypeStruct(v.shape, v.value.dtype) for v in group] for group in groups)
    data = jax.ShapeDtypeStruct((BATCH, PIXELS, PIXELS, 3), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return model.train_step, state, data, len(model.trainable_variables)


def main():
    from tf_largebatch.norms.device import compiling_for

    for name in sys.argv[1:]:
        with compiling_for("tpu", REPLICAS):
            train, state, data, tensors = step(name)
            compiled = tpu_compiler.compile_jax_for_tpu(train, state, data, "v5e:2x2", REPLICAS)
        print(json.dumps({"name": name, "tensors": tensors, "collectives": compiled.collectives}), flush=True)


if __name__ == "__main__":
    tpu_compiler.use_settings()  # before jax is imported
    main()
