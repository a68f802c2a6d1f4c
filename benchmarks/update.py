"""What the update of all layers costs, without the gradients: ResNet-50's 25.6 million parameters in 214 tensors.

    python -m benchmarks.update                                  # half a minute
    python -m benchmarks.update --json=benchmarks/reports/update.json    # keeps one entry for each TensorFlow version

Every optimizer has its own weights and slots and takes its turn in one process; each is called once a round, as a
graph with the gradients as arguments. The pass is the least a step with momentum could do: one vector of all
parameters is read, and another read and written. Model Garden's LARS needs tf-models-official.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

from absl import app, flags

from benchmarks import harness

FLAGS = flags.FLAGS

BASE = "Keras SGD-momentum"
DECAY = 1e-4

Update = Callable[[list[Any]], Any]


def shapes() -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's trainable tensors."""
    import keras

    model = keras.applications.ResNet50(weights=None)
    return [tuple(v.shape) for v in model.trainable_variables]


def keras_update(make: Callable[[], Any], sizes: list[tuple[int, ...]]) -> Update:
    """An optimizer of Keras 3's, with variables of its own."""
    import keras
    import tensorflow as tf

    variables = [keras.Variable(keras.random.normal(size, seed=0), name="w") for size in sizes]
    optimizer = make()
    optimizer.build(variables)
    if not hasattr(optimizer, "measured_gradient_norms"):
        return lambda gradients: optimizer.apply(gradients, variables)
    norms = [tf.constant(2.0)] * len(variables)

    def update(gradients: list[Any]) -> None:
        with optimizer.measured_gradient_norms(norms):
            optimizer.apply(gradients, variables)

    return update


def garden_update(sizes: list[tuple[int, ...]]) -> Update:
    """Model Garden's LARS."""
    import tensorflow as tf
    from official.modeling.optimization import lars

    variables = [tf.Variable(tf.random.normal(size), name=f"w{i}") for i, size in enumerate(sizes)]
    small = [v.name.split(":")[0] + "$" for v in variables if v.shape.rank < 2]
    optimizer = lars.LARS(
        0.1, weight_decay_rate=DECAY, exclude_from_weight_decay=small, exclude_from_layer_adaptation=small
    )
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])  # makes the slots

    def update(gradients: list[Any]) -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return update


def memory_pass(sizes: list[tuple[int, ...]]) -> Update:
    """Reads one vector, reads and writes another, each as long as all tensors together."""
    import tensorflow as tf

    size = sum(tf.TensorShape(one).num_elements() for one in sizes)
    source, target = tf.random.normal([size]), tf.Variable(tf.random.normal([size]))

    def update(gradients: list[Any]) -> None:
        del gradients
        target.assign_add(source)

    return update


def updates(sizes: list[tuple[int, ...]]) -> dict[str, Update]:
    """All updates by name."""
    import keras

    from tf_largebatch.optimizers import CLARS, LARS

    optimizers = {
        BASE: lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "Keras SGD-momentum, decoupled decay": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=DECAY),
        "Keras Lamb": lambda: keras.optimizers.Lamb(1e-3),
        "CLARS": lambda: CLARS(0.1),
        "CLARS, decay": lambda: CLARS(0.1, weight_decay_rate=DECAY),
        "CLARS, decay, no cap of the agreement": lambda: CLARS(0.1, weight_decay_rate=DECAY, max_agreement=None),
        "CLARS, decay, popular momentum": lambda: CLARS(0.1, weight_decay_rate=DECAY, classic_momentum=False),
        "CLARS, decay, compiled by XLA": lambda: CLARS(0.1, weight_decay_rate=DECAY, jit_compile=True),
        "LARS": lambda: LARS(0.1),
        "LARS, decay": lambda: LARS(0.1, weight_decay_rate=DECAY),
    }
    found = {"memory pass": memory_pass(sizes)}
    found |= {name: keras_update(make, sizes) for name, make in optimizers.items()}
    if importlib.util.find_spec("official") is None:
        print("Model Garden's LARS is left out: tf-models-official is not installed.")
    else:
        found["Model Garden LARS, decay"] = garden_update(sizes)
    return found


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Times every update once a round."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")  # else it takes the many functions for one retraced
    sizes = shapes()
    gradients = [0.01 * tf.random.normal(size) for size in sizes]
    programs = {
        name: functools.partial(tf.function(update, autograph=False), gradients)
        for name, update in updates(sizes).items()
    }
    times = harness.interleaved(programs, rounds, warm_up=2)
    return {
        name: {
            **harness.median_and_quartiles("milliseconds", [1e3 * t for t in some]),
            **harness.median_and_quartiles("ratio", harness.ratios(some, times[BASE])),
        }
        for name, some in times.items()
    }


def main(argv: list[str]) -> None:
    """Measures, prints a table and writes JSON."""
    del argv
    results = measure(FLAGS.rounds)
    print(f"{'':36} {'ms':>6} {'quartiles':>13}   to SGD-momentum, quartiles")
    for name, row in results.items():
        low, high = row["milliseconds_quartiles"]
        first, third = row["ratio_quartiles"]
        columns = f"{row['milliseconds']:6.1f} {low:6.1f}-{high:<6.1f}   {row['ratio']:.2f}  {first:.2f}-{third:.2f}"
        print(f"{name:36} {columns}")
    if FLAGS.json:
        report = harness.read_report(FLAGS.json)
        environment = harness.versions_and_machine()
        report[f"tensorflow {environment['tensorflow']}"] = {
            "environment": environment,
            "rounds": FLAGS.rounds,
            "updates": results,
        }
        harness.write_report(FLAGS.json, report)


if __name__ == "__main__":
    flags.DEFINE_integer("rounds", 21, "How often each update is timed.")
    flags.DEFINE_string("json", None, "File to keep the numbers in.")
    app.run(main)
