"""What exact gradient norms cost in Model Garden: LargeBatchTask with CLARS over Model Garden's own step with SGD.

    python -m benchmarks.model_garden                              # ResNet-50 and a small ResNet: some minutes
    python -m benchmarks.model_garden --networks=small --rounds=31
    python -m benchmarks.model_garden --json=benchmarks/reports/model_garden.json

It needs the environment of the extra `garden`. Both steps are compiled and take turns in one process; reported is the
median of the ratios of neighbors, with their quartiles.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import harness

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A ResNet of Model Garden, its input, and the number of examples."""

    model_id: int
    depth_multiplier: float
    pixels: int
    batch: int


CASES = {"resnet50": Case(50, 1.0, 224, 16), "resnet18": Case(18, 0.5, 32, 128), "small": Case(10, 0.25, 32, 64)}


def build_step(case: Case, measured: bool) -> Callable[[], Any]:
    """A compiled training step on random images: with CLARS and exact norms, or Model Garden's own with SGD."""
    import tensorflow as tf
    from official.core import exp_factory
    from official.vision.tasks import image_classification

    from tf_largebatch.model_garden import registry_imports, task  # noqa: F401  (registers)

    params = exp_factory.get_exp_config("clars_resnet_imagenet")
    resnet = {"model_id": case.model_id, "depth_multiplier": case.depth_multiplier}
    model_config = {"backbone": {"resnet": resnet}, "input_size": [case.pixels, case.pixels, 3]}
    optimizer_config = {"type": "clars"} if measured else {"type": "sgd", "sgd": {"momentum": 0.9}}
    params.override({"task": {"model": model_config, "train_data": {"global_batch_size": case.batch}}})
    params.override({"trainer": {"optimizer_config": {"optimizer": optimizer_config}}})
    params.validate()
    cls = task.LargeBatchTask if measured else image_classification.ImageClassificationTask
    trained = cls(params.task)
    model = trained.build_model()
    optimizer = trained.create_optimizer(params.trainer.optimizer_config)
    images = tf.random.normal([case.batch, case.pixels, case.pixels, 3])
    labels = tf.random.uniform([case.batch], 0, 1000, tf.int32)

    @tf.function(autograph=False)
    def step() -> Any:
        return trained.train_step((images, labels), model, optimizer, [])

    return step


def main(argv: list[str]) -> None:
    """Prints a row for each network."""
    del argv
    report = harness.read_report(FLAGS.json) or {}
    print(f"{'network':10} {'batch':>6} {'pixels':>6} {'ratio':>7} {'quartiles':>14}")
    for name in FLAGS.networks:
        case = CASES[name]
        programs = {"plain": build_step(case, False), "exact": build_step(case, True)}
        times = harness.interleaved(programs, FLAGS.rounds)
        row = harness.median_and_quartiles("ratio", harness.ratios(times["exact"], times["plain"]))
        low, high = row["ratio_quartiles"]
        print(f"{name:10} {case.batch:6} {case.pixels:6} {row['ratio']:7.3f} {low:6.3f} - {high:.3f}", flush=True)
        report[name] = {**dataclasses.asdict(case), **row, "rounds": FLAGS.rounds, **harness.versions_and_machine()}
        harness.write_report(FLAGS.json, report)


if __name__ == "__main__":
    flags.DEFINE_list("networks", ["resnet50", "small"], f"Networks, of {', '.join(CASES)}.")
    flags.DEFINE_integer("rounds", 11, "How often each step is timed.")
    flags.DEFINE_string("json", None, "File for the report; it keeps the networks that are not run now.")
    app.run(main)
