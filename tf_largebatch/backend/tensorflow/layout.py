"""The devices of a run on TensorFlow: the strategies of `tf.distribute`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def strategy(name: str, replicas: int | None, tpu: str | None) -> Any:
    """Makes a strategy; see `distribute.strategies.build`."""
    if name == "mirrored":
        return _mirrored(replicas)
    if name == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu(tpu or "local")
    return tf.distribute.get_strategy()


def _mirrored(replicas: int | None) -> Any:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < (replicas or 2):
            raise ValueError(
                f"strategy=mirrored needs {replicas or 2} GPUs; received a machine with {len(gpus)}: pass fewer "
                "replicas, or strategy=one_device."
            )
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas or len(gpus))])
    if replicas is None:
        raise ValueError(
            "strategy=mirrored needs GPUs, of which this machine has none: pass replicas, the number of logical "
            "devices to cut the CPU into, or strategy=one_device."
        )
    cpu = tf.config.list_physical_devices("CPU")[0]
    configured = tf.config.get_logical_device_configuration(cpu) or [tf.config.LogicalDeviceConfiguration()]
    if len(configured) < replicas:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        except RuntimeError as error:
            raise ValueError(
                f"replicas={replicas} needs as many logical CPUs, and TensorFlow has already started with "
                f"{len(configured)}: make the strategy first."
            ) from error
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


def _tpu(tpu: str) -> Any:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        if tpu != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"strategy=tpu found no TPU at tpu={tpu!r}: {reason}") from error
