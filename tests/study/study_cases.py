"""A small study, and rows of runs that were never run."""

from __future__ import annotations

from tf_largebatch.study.config import make_study

CONTENT = {
    "dataset": "digits",
    "model": "resnet8",
    "batch_sizes": [64, 128],
    "updates": 8,
    "trials": 3,
    "final_seeds": [1, 2],
    "evaluations": 4,
    "targets": [0.5],
    "arms": {
        "clars": {
            "optimizer": "clars",
            "fixed": {"max_rate": 1.0},
            "space": {
                "learning_rate": {"log": [0.1, 2.0]},
                "adapted_learning_rate": {"log": [0.03, 1.0]},
                "power": [0.5, 1, 2],
            },
        },
        "adamw": {"optimizer": "adamw", "warmup": 0.25, "space": {"learning_rate": {"log": [1e-3, 3e-2]}}},
    },
}


def study(**changes):
    return make_study({**CONTENT, **changes})


def row(job, accuracy, status="trained"):
    found = {name: getattr(job, name) for name in ("key", "arm", "batch_size", "phase", "trial", "seed", "point")}
    curve = [[2 * k, 1.0 / k, accuracy * k / 4] for k in range(1, 5)]
    found |= {"status": status, "validation_accuracy": accuracy, "best_validation_accuracy": accuracy, "curve": curve}
    found |= {"seconds_per_update": 0.01, "seconds": 1.0, "backend": "tensorflow"}
    return {**found, "test_accuracy": accuracy - 0.01} if job.phase == "final" else found
