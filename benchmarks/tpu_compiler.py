"""Compiles a step with the real TPU compiler, without a TPU, and reads what the compiler says of it.

JAX drives TPUs with the library libtpu, which compiles for a named topology what JAX traces, or the StableHLO to which
TensorFlow lowers a traced step. Nothing is executed: the result says that the step compiles for that TPU and what the
compiler counts, not that it runs on one. Needs the extra [tpu], and a process that has not used jax before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

# Of jax and libtpu, which read them when they are loaded.
_SETTINGS = {
    "JAX_PLATFORMS": "cpu",  # JAX itself computes nothing on a TPU
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask a cloud's metadata server for a TPU
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at a time
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
}

_COLLECTIVE = re.compile(r" (all-reduce|reduce-scatter|all-gather|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What the compiler writes where it has no estimate.
_NO_ESTIMATE = 10**12
# What would make the device wait for the host in the middle of a step.
_HOST_CALL = re.compile(
    r" (infeed|outfeed|send|recv|send-done|recv-done)\(|custom_call_target=\"([^\"]*[Hh]ost[^\"]*)\""
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one replica's program.

    Attributes:
        device_kind: The TPU's name.
        compiler: The compiler's version.
        flops: floating-point operations. The body of a loop counts once, however often it runs.
        bytes_accessed: Bytes read and written by the program's operations; a loop's body counts once.
        temporary_bytes: Memory (HBM) for intermediate results.
        argument_bytes: Memory for variables and inputs.
        peak_bytes: The most memory in use at once, variables and inputs included.
        collectives: The HLO lines of operations between replicas.
        hlo: The optimized program.
    """

    device_kind: str
    compiler: str
    flops: float
    bytes_accessed: float
    temporary_bytes: int
    argument_bytes: int
    peak_bytes: int
    collectives: tuple[str, ...]
    hlo: str

    def collective_bytes(self) -> int:
        """Bytes that a replica takes into its collectives, those in a loop counted once."""
        return sum(_result_bytes(line) for line in self.collectives)

    def estimated_cycles(self) -> int:
        """Clock cycles by the compiler's own estimate, operation after operation; a loop's body counts once.

        A sum of what it notes beside the fused operations to choose between ways of doing them. Nothing was timed.
        """
        return sum(c for c in (int(found) for found in _CYCLES.findall(self.hlo)) if c < _NO_ESTIMATE)

    def host_calls(self) -> list[str]:
        """The HLO lines of operations that involve the host during the step."""
        return [line.strip() for line in self.hlo.splitlines() if _HOST_CALL.search(line)]

    def dynamic_shapes(self) -> list[str]:
        """The HLO lines with a size known only when the step runs."""
        return [line.strip() for line in self.hlo.splitlines() if re.search(r"\[[^\]]*<=\d", line)]


def why_unavailable() -> str | None:
    """What is missing for compiling, or None."""
    missing = [name for name in ("jax", "libtpu") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed: pip install 'tf-largebatch[tpu]'" if missing else None


def lower(step: Any, arguments: Sequence[Any]) -> bytes:
    """The step as StableHLO, in MLIR's bytecode.

    Args:
        step: A `tf.function(jit_compile=True)`.
        arguments: A `tf.TensorSpec` of static shape for each argument.
    """
    # TensorFlow built without TPU support refuses to lower for "TPU". The lowering for "CPU" is the same StableHLO
    # but for the algorithm behind random numbers.
    return step.experimental_get_compiler_ir(*arguments)(stage="stablehlo_serialized", platform_name="CPU")


def portable(stablehlo: bytes) -> bytes:
    """The same module in StableHLO's portable form, which other versions of JAX read."""
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo as dialect
    from jax.interpreters import mlir

    with mlir.make_ir_context():
        module = ir.Module.parse(stablehlo)
        _remove_copies(module.operation)
        return dialect.serialize_portable_artifact(module, dialect.get_minimum_version())


@contextlib.contextmanager
def all_reduce_among(replicas: int) -> Iterator[None]:
    """Within it the sums over replicas that a traced step asks tf.distribute for are sums over so many TPU replicas.

    Without a TPU there is no `TPUStrategy`; this puts its all-reduce where the default strategy has none. The step is
    otherwise traced as for one replica: a loss is not divided by their number.
    """
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # not among tf.raw_ops

    group = [list(range(replicas))]

    def all_reduce(context: Any, reduce_op: Any, value: Any, options: Any = None) -> Any:
        def over_replicas(t: Any) -> Any:
            total = gen_xla_ops.xla_all_reduce(t, group_assignment=group, reduce_op="Add", mode="CrossReplica")
            mean = str(getattr(reduce_op, "value", reduce_op)).upper() == "MEAN"
            return total / replicas if mean else total

        return tf.nest.map_structure(over_replicas, value)

    original = tf.distribute.ReplicaContext.all_reduce
    try:
        if replicas > 1:
            tf.distribute.ReplicaContext.all_reduce = all_reduce
        yield
    finally:
        tf.distribute.ReplicaContext.all_reduce = original


def compile_jax_for_tpu(
    step: Any, state: Any, data: Any, topology: str = "v5e:2x2", replicas: int = 1, effort: float = -1.0
) -> Compiled:
    """Compiles a step of JAX, straight from JAX.

    Args:
        step: From the state and the data to a result and the new state, for which the old one's memory is used.
        state: Arrays or their shapes and dtypes, which every device has.
        data: The same for arrays that are spread over the devices along their first axis.
        topology: As for `compile_for_tpu`.
        replicas: How many of its chips run the program.
        effort: As for `compile_for_tpu`.
    """
    use_settings()
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:replicas]
    mesh = Mesh(np.array(devices), ("batch",))

    def placed(tree: Any, *spec: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding), tree)

    whole = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(step, donate_argnums=0, out_shardings=whole).lower(placed(state), placed(data, "batch"))
    compiled = lowered.compile(compiler_options={"exec_time_optimization_effort": effort})
    return what_the_compiler_says(compiled.runtime_executable(), devices[0])


def use_settings() -> None:
    """Sets what JAX and the compiler read from the environment when they are loaded."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


def compile_for_tpu(stablehlo: bytes, topology: str = "v5e:2x2", replicas: int = 1, effort: float = -1.0) -> Compiled:
    """Compiles a lowered step.

    Args:
        stablehlo: From `lower`.
        topology: Kind of TPU and arrangement of chips, such as "v5e:2x2", "v5e:16x16", "v5p:2x2x1", "v6e:2x2".
        replicas: How many of its chips run the program, each on its share of the batch.
        effort: Of the compiler's optimizer, from -1 (fastest to compile) to 0 (its default).

    Raises:
        ValueError: If the topology has fewer devices.
    """
    use_settings()
    import numpy as np
    from jax.experimental import topologies
    from jax.extend.mlir import ir
    from jax.interpreters import mlir
    from jaxlib import xla_client

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    if replicas > len(devices):
        raise ValueError(f"replicas must be at most {len(devices)} on {topology}, got replicas={replicas}.")
    devices = devices[:replicas]
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = replicas, 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    options.executable_build_options.exec_time_optimization_effort = effort
    with mlir.make_ir_context():
        module = ir.Module.parse(stablehlo)
        _remove_copies(module.operation)
        program = devices[0].client.compile(module, xla_client.DeviceList(tuple(devices)), options)
    return what_the_compiler_says(program, devices[0])


def what_the_compiler_says(program: Any, device: Any) -> Compiled:
    """The figures of a program that was compiled for such a device."""
    memory = program.get_compiled_memory_stats()
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    hlo = program.hlo_modules()[0].to_string()
    return Compiled(
        device_kind=device.device_kind,
        compiler=device.client.platform_version.replace("\n", ", "),
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        temporary_bytes=memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        collectives=tuple(line.strip() for line in hlo.splitlines() if _COLLECTIVE.search(line)),
        hlo=hlo,
    )


def _result_bytes(line: str) -> int:
    """The bytes of an HLO operation's result, an array or a tuple of arrays; an all-reduce takes in as many."""
    result = _COLLECTIVE.split(line)[0].split(" = ", 1)[1]
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * max(int(bits or 8) // 8, 1)
        for _, bits, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", result))
    )


def _remove_copies(operation: Any) -> None:
    """Replaces every mhlo.copy by its operand: TensorFlow copies updated variables so, libtpu's reader refuses it."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                if inner.operation.name == "mhlo.copy":
                    inner.operation.results[0].replace_all_uses_with(inner.operation.operands[0])
                    inner.operation.erase()
                else:
                    _remove_copies(inner.operation)
