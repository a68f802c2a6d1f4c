"""The devices of a run on JAX: `keras.distribution.DataParallel`, and the processes of `jax.distributed`."""

from __future__ import annotations

import os
from typing import Any

import jax
import keras

from tf_largebatch.backend.jax.processes import agree, number, refusing_together

__all__ = [
    "agree",
    "cores_of_the_tpu",
    "devices_of_all_processes",
    "devices_of_this_host",
    "distribution",
    "join",
    "number",
    "process",
    "refusing_together",
]


def join(address: str | None, processes: int | None, process: int | None) -> None:
    """Connects this process with the others, and waits until all have been started; before a device is used.

    Args:
        address: Host and port of the first process; None for what the environment says: Keras's variables
            KERAS_DISTRIBUTION_..., then what JAX finds of SLURM, Open MPI or a TPU pod.
        processes: Their number; None for what the environment says.
        process: The number of this one; None for what the environment says.

    Raises:
        ValueError: If the environment does not say it, or the first process cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    environ = os.environ
    if address is None and (addresses := environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")):
        address = addresses.split(",")[0]
        processes = int(environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", addresses.count(",") + 1))
        process = int(environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))
    try:
        jax.distributed.initialize(address, processes, process)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"strategy=multi_worker cannot connect the workers ({reason}): set TF_CONFIG, or "
            "KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID, or start the command under SLURM, Open "
            "MPI or on a TPU pod."
        ) from error


def process() -> int:
    """Returns the number of this process."""
    return jax.process_index()


def devices_of_this_host(replicas: int | None) -> list[str]:
    """Returns the devices of strategy=mirrored; without accelerators the CPU, split into `replicas` devices.

    Raises:
        ValueError: If there are fewer.
    """
    if replicas is not None and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", replicas)
        except RuntimeError:  # a device was used already; how many there are is checked below
            pass
    devices = keras.distribution.list_devices()
    kind = jax.default_backend().upper()
    if replicas is None and kind == "CPU":
        raise ValueError(
            "strategy=mirrored needs GPUs, of which this machine has none: pass replicas, the number of logical "
            "devices to cut the CPU into, or strategy=one_device."
        )
    if len(devices) < (replicas or 2):
        raise ValueError(
            f"strategy=mirrored needs {replicas or 2} devices; received a machine with {len(devices)} of kind {kind}: "
            "pass fewer replicas, or strategy=one_device."
        )
    return devices[:replicas]


def devices_of_all_processes() -> list[str]:
    """Returns the devices of strategy=multi_worker.

    Raises:
        ValueError: If a process has more of them than another.
    """
    agree({"number of devices": jax.local_device_count()}, "start each worker with as many devices")
    return keras.distribution.list_devices()


def cores_of_the_tpu(tpu: str) -> list[str]:
    """Returns the devices of strategy=tpu.

    Raises:
        ValueError: If JAX sees no TPU.
    """
    if tpu != "local" or jax.default_backend() != "tpu":
        raise ValueError(
            f"strategy=tpu found no TPU at tpu={tpu!r}: JAX uses the {jax.default_backend().upper()} of this host, and "
            "a TPU of its own host alone."
        )
    return keras.distribution.list_devices()


def distribution(devices: list[str]) -> Any:
    """Returns what spreads batches over the devices; each process gives its own share of a batch."""
    return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
