"""How the task measures gradient norms, and what is refused before training because it cannot be measured."""

from __future__ import annotations

from typing import Any

from tf_largebatch.core.exclusions import Exclusion
from tf_largebatch.model_garden import configs
from tf_largebatch.model_garden.refusals import ConfigurationError, one_line
from tf_largebatch.norms import Registry, check_supported
from tf_largebatch.tf_keras.norms import TF_KERAS
from tf_largebatch.tf_keras.optimizers import clars_of
from tf_largebatch.training.step import Measuring


def measuring_of(norms: Any, network: Any, batch_size: Any, micro_batch_size: int | None) -> Measuring:
    """Returns what a pass over (a micro-batch of) a batch is to measure.

    Args:
        norms: The `GradientNorms` config, of mode "exact" or "sampled".
        network: The network that is measured.
        batch_size: Images of a replica's batch.
        micro_batch_size: Images of a micro-batch; None for all.
    """
    examples = norms.norm_examples
    if examples is not None and micro_batch_size is not None:
        examples = -(-examples * micro_batch_size // batch_size)  # rounded up
    return Measuring(network, registry_of(norms), examples)


def registry_of(norms: Any) -> Registry:
    """Returns the layer rules that a `GradientNorms` config asks for."""
    return TF_KERAS.allowing_generic() if norms.allow_generic else TF_KERAS


def check_optimizer(optimizer: Any, config: Any, norms: Any, network: Any) -> None:
    """Raises if a pattern matches no variable, or if CLARS needs norms of layers that cannot be measured.

    Args:
        optimizer: The optimizer.
        config: The `OptimizationConfig` that it was made from.
        norms: The `GradientNorms` config.
        network: The network that is trained.

    Raises:
        ConfigurationError: If there is such a pattern or layer. The message names it.
    """
    arguments = config.optimizer.get()
    for field in ("exclude_from_layer_adaptation", "exclude_from_weight_decay"):
        if isinstance(arguments, configs.LayerwiseConfig):
            try:
                Exclusion(field, getattr(arguments, field)).select(network.trainable_variables)
            except ValueError as error:
                path = f"trainer.optimizer_config.optimizer.{config.optimizer.type}"
                raise ConfigurationError(f"{path}: {one_line(error)}") from error
    if clars_of(optimizer) is not None and norms.mode != "replica":
        try:
            check_supported(network, registry_of(norms))
        except ValueError as error:
            raise ConfigurationError(one_line(error)) from error
