"""Learning rate, warmup and step counts from the final global batch size.

Model Garden's experiment factories compute them before overrides, so another batch size leaves them stale. Here they
are null until all overrides have been applied, and are derived then.
"""

from __future__ import annotations

from typing import Any

from tf_largebatch.core.schedules import linear_scaling

# Batch size from which on, peak learning rate, epochs of warmup; from the released code of "Concurrent Adversarial
# Learning for Large-Batch Training", arXiv 2106.00221.
CONADV_TABLE = ((65536, 43.0, 41.0), (32768, 31.2, 25.0), (16384, 25.0, 5.0), (1, 10.0, 5.0))


def peak_and_warmup(recipe: Any, batch_size: int) -> tuple[float, float]:
    """Peak learning rate and epochs of warmup for a batch size.

    They come from the authors' table with `recipe.table == "conadv"`, otherwise from the linear rule
    `base_learning_rate * batch_size / base_batch_size` (Goyal et al., arXiv 1706.02677) without warmup. Without
    `base_batch_size` the peak is `base_learning_rate` for every batch size. `recipe.warmup_epochs` overrides the warmup
    where it is not None.
    """
    if recipe.table == "conadv":
        _, peak, warmup = next(row for row in CONADV_TABLE if batch_size >= row[0])
    else:
        peak, warmup = recipe.base_learning_rate, 0.0
        if recipe.base_batch_size is not None:
            peak = linear_scaling(peak, batch_size, recipe.base_batch_size)
    return peak, warmup if recipe.warmup_epochs is None else recipe.warmup_epochs


def derive(params: Any) -> None:
    """Fills in the null fields of `params.trainer`, in place.

    * steps of an epoch: `recipe.train_examples // task.train_data.global_batch_size`, at least 1;
      `steps_per_loop` is an epoch, and the intervals are as many whole loops as an epoch holds;
    * `train_steps`: `recipe.epochs` epochs of exactly `train_examples / global_batch_size` steps, rounded;
    * warmup: linear, if it has epochs and `warmup.type` is null;
    * every schedule that starts at a learning rate: from the peak, its decay over the steps after the warmup.

    Args:
        params: The `ExperimentConfig`.
    """
    trainer, recipe = params.trainer, params.recipe
    batch_size = params.task.train_data.global_batch_size
    exact_epoch = recipe.train_examples / batch_size
    epoch = max(1, recipe.train_examples // batch_size)
    peak, warmup_epochs = peak_and_warmup(recipe, batch_size)

    def fill(config: Any, field: str, value: Any) -> None:
        if getattr(config, field) is None:
            setattr(config, field, value)

    fill(trainer, "train_steps", max(1, round(recipe.epochs * exact_epoch)))
    fill(trainer, "steps_per_loop", min(epoch, trainer.train_steps))
    # Model Garden needs whole loops between summaries and checkpoints.
    loops = max(1, min(epoch, trainer.train_steps) // trainer.steps_per_loop)
    for field in ("summary_interval", "checkpoint_interval", "validation_interval"):
        fill(trainer, field, loops * trainer.steps_per_loop)
    validation_batch = params.task.validation_data.global_batch_size
    fill(trainer, "validation_steps", max(1, recipe.validation_examples // validation_batch))

    optimization = trainer.optimizer_config
    if optimization.warmup.type is None and warmup_epochs:
        optimization.warmup.type = "linear"
    warmup_steps = 0
    if optimization.warmup.type is not None:
        warmup = optimization.warmup.get()
        fill(warmup, "warmup_steps", max(1, round(warmup_epochs * exact_epoch)))
        warmup_steps = warmup.warmup_steps
    schedule = optimization.learning_rate.get()
    if hasattr(schedule, "initial_learning_rate"):
        fill(schedule, "initial_learning_rate", peak)
    for field in ("decay_steps", "total_decay_steps"):
        if hasattr(schedule, field) and getattr(schedule, field) is None:
            setattr(schedule, field, max(1, trainer.train_steps - warmup_steps))
            schedule.offset = schedule.offset or warmup_steps
