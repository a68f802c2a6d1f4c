"""Which devices a run is laid out on, and whether the batch fits them.

one_device      the first GPU, or the CPU
mirrored        several GPUs of this host, or the CPU split into logical devices
multi_worker    several hosts, each running the same command with its own TF_CONFIG
tpu             the cores of a TPU

On TensorFlow each name stands for a strategy of `tf.distribute`, on JAX for a `keras.distribution.DataParallel`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}} on the first host'
)


def check(name: str, replicas: int | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Checks what can be checked without touching a device.

    Args:
        name: One of `STRATEGIES`.
        replicas: As of `build`.
        environ: Where `TF_CONFIG` is looked up, by default the environment.

    Raises:
        ValueError: If `TF_CONFIG` is malformed, lacking where it is needed, or says something else than `name`.
    """
    if name not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; received strategy={name!r}.")
    if replicas is not None and name != "mirrored":
        raise ValueError(f"replicas applies to strategy=mirrored; received replicas={replicas} with strategy={name!r}.")
    if replicas is not None and replicas < 1:
        raise ValueError(f"replicas must be at least 1; received replicas={replicas}.")
    text = (os.environ if environ is None else environ).get("TF_CONFIG")
    if name != "multi_worker":
        workers = len(_workers(_parsed(text))) if text else 0
        if workers > 1:
            raise ValueError(
                f"strategy={name!r} trains on one host, but TF_CONFIG names {workers} workers: pass "
                "strategy=multi_worker, or unset TF_CONFIG."
            )
        return
    if not text:
        if _on_jax():  # which may find the workers otherwise; see `join`
            return
        raise ValueError(f"strategy=multi_worker needs TF_CONFIG, which is not set: for example {_EXAMPLE}.")
    _check_cluster(_parsed(text))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices that share the batches of a run.

    Attributes:
        replicas: Their number, in all processes.
        making: Returns the context in which the model is made.
        training: Returns the context in which it is trained and evaluated.
        whole_batches: Whether one program computes with the arrays of all devices, as on JAX; else each device has a
            loss of its own.
        process: Number of this process, among those that each give `fit` their share of a batch.
        processes: Number of those processes; 1 on TensorFlow, which cuts the batches itself.
    """

    replicas: int
    making: Callable[[], AbstractContextManager[Any]]
    training: Callable[[], AbstractContextManager[Any]] = nullcontext
    whole_batches: bool = False
    process: int = 0
    processes: int = 1


def join(name: str, environ: Mapping[str, str] | None = None) -> None:
    """On JAX connects this process with the other workers, before a device is used; TensorFlow does so in `layout`.

    Args:
        name: One of `STRATEGIES`.
        environ: Where `TF_CONFIG` is looked up, by default the environment.

    Raises:
        ValueError: If nothing says which workers there are.
    """
    if name != "multi_worker" or not _on_jax():
        return
    from tf_largebatch.backend.jax import layout as jax_layout

    text = (os.environ if environ is None else environ).get("TF_CONFIG")
    if not text:
        jax_layout.join(None, None, None)
        return
    config = _parsed(text)
    workers, task = _workers(config), config["task"]
    first = 0 if task["type"] == "chief" else len(config["cluster"].get("chief", ()))
    jax_layout.join(workers[0], len(workers), first + task["index"])


def agree(name: str, values: Mapping[str, Any], remedy: str) -> None:
    """On JAX raises unless all workers have the same values; all must call it.

    Args:
        name: One of `STRATEGIES`.
        values: What must be equal, by names.
        remedy: What to do if it is not.

    Raises:
        ValueError: On every worker, naming the first value that differs.
    """
    if name == "multi_worker" and _on_jax():
        from tf_largebatch.backend.jax import layout as jax_layout

        jax_layout.agree(values, remedy)


def refusing_together(name: str) -> AbstractContextManager[None]:
    """Returns a context in which, on JAX, a ValueError of one worker is raised by all; all must enter and leave it.

    Args:
        name: One of `STRATEGIES`.
    """
    if name != "multi_worker" or not _on_jax():
        return nullcontext()
    from tf_largebatch.backend.jax import layout as jax_layout

    return jax_layout.refusing_together()


def layout(name: str, replicas: int | None = None, tpu: str | None = None) -> Layout:
    """Returns the layout of a name; arguments and errors as of `build`. On JAX, `join` comes first."""
    if not _on_jax():
        strategy = build(name, replicas, tpu)
        return Layout(strategy.num_replicas_in_sync, strategy.scope)
    check(name, replicas)
    if name == "one_device":
        return Layout(1, nullcontext)
    from tf_largebatch.backend.jax import layout as jax_layout

    if name == "mirrored":
        devices = jax_layout.devices_of_this_host(replicas)
    elif name == "tpu":
        devices = jax_layout.cores_of_the_tpu(tpu or "local")
    else:
        devices = jax_layout.devices_of_all_processes()
    scope = jax_layout.distribution(devices).scope
    processes = jax_layout.number() if name == "multi_worker" else 1
    process = jax_layout.process() if name == "multi_worker" else 0
    return Layout(len(devices), scope, scope, True, process, processes)


def build(name: str, replicas: int | None = None, tpu: str | None = None) -> Any:
    """Makes the strategy of TensorFlow. Call it before anything else touches a device, and before the model is made.

    Args:
        name: One of `STRATEGIES`. `"multi_worker"` waits until all workers have been started.
        replicas: With `"mirrored"`, how many GPUs to use, by default all; without GPUs, into how many logical
            devices to cut the CPU, which must be said.
        tpu: With `"tpu"`, its name or address; on a TPU's own host `"local"`, the default.

    Raises:
        ValueError: If the devices are not there, and as `check` does.
    """
    check(name, replicas)
    from tf_largebatch.backend.tensorflow import layout as tensorflow_layout

    return tensorflow_layout.strategy(name, replicas, tpu)


def is_chief(name: str, environ: Mapping[str, str] | None = None) -> bool:
    """Returns whether this process is the one that writes results: the first worker, or the only process.

    On JAX, `join` comes first.

    Args:
        name: One of `STRATEGIES`.
        environ: Where `TF_CONFIG` is looked up, by default the environment.
    """
    if name != "multi_worker":
        return True
    if _on_jax():
        from tf_largebatch.backend.jax import layout as jax_layout

        return jax_layout.process() == 0
    config = _parsed((os.environ if environ is None else environ)["TF_CONFIG"])
    task = config["task"]
    return task["type"] == "chief" or ("chief" not in config["cluster"] and task["index"] == 0)


def task_name(environ: Mapping[str, str] | None = None) -> str:
    """Returns what TF_CONFIG calls this process: `worker-1`. On JAX, its number stands after `worker-`.

    Args:
        environ: Where `TF_CONFIG` is looked up, by default the environment.
    """
    if _on_jax():
        from tf_largebatch.backend.jax import layout as jax_layout

        return f"worker-{jax_layout.process()}"
    task = _parsed((os.environ if environ is None else environ)["TF_CONFIG"])["task"]
    return f"{task['type']}-{task['index']}"


def check_batch(batch_size: int, replicas: int, micro_batch_size: int | None = None) -> None:
    """Raises unless every replica gets as many examples, and those make whole micro-batches.

    Args:
        batch_size: Examples of one update, over all replicas.
        replicas: Number of replicas.
        micro_batch_size: Examples of a micro-batch on one replica, or None for no split.

    Raises:
        ValueError: Naming the nearest batch sizes that fit.
    """
    if batch_size % replicas:
        raise ValueError(
            f"batch_size must be a multiple of the {replicas} replicas; received batch_size={batch_size}: "
            f"{_nearest(batch_size, replicas)}."
        )
    share = batch_size // replicas
    if micro_batch_size is not None and share % micro_batch_size:
        of_replica = f" on each of {replicas} replicas" if replicas > 1 else ""
        raise ValueError(
            f"batch_size must be whole micro-batches{of_replica}; received batch_size={batch_size} with "
            f"micro_batch_size={micro_batch_size}: {_nearest(batch_size, replicas * micro_batch_size)}."
        )


def _nearest(size: int, unit: int) -> str:
    below = size // unit * unit
    return f"the nearest that fit are {below} and {below + unit}" if below else f"the smallest that fits is {unit}"


def _on_jax() -> bool:
    return keras.backend.backend() == "jax"


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ValueError(f"TF_CONFIG must be JSON, for example {_EXAMPLE}; received {text!r}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"TF_CONFIG must be a JSON object, for example {_EXAMPLE}; received {text!r}.")
    return config


def _workers(config: dict[str, Any]) -> list[str]:
    cluster = config.get("cluster") or {}
    return [*cluster.get("chief", ()), *cluster.get("worker", ())]


def _check_cluster(config: dict[str, Any]) -> None:
    workers = _workers(config)
    others = sorted(set(config.get("cluster") or {}) - {"chief", "worker"})
    task = config.get("task") or {}
    kind, index = task.get("type"), task.get("index")
    if not workers or others:
        raise ValueError(
            f"TF_CONFIG must name workers (and at most one chief) for strategy=multi_worker; received {config!r}."
        )
    if len(set(workers)) < len(workers):
        raise ValueError(f"TF_CONFIG must give every worker an address of its own; received {workers}.")
    members = config["cluster"].get(kind, ())
    if not isinstance(index, int) or not 0 <= index < len(members):
        raise ValueError(
            f"TF_CONFIG's task must be one of its cluster's; received type={kind!r}, index={index!r} with "
            f"{len(workers)} workers."
        )
