"""The training step with per-example norms, and the model wrapper around it."""

from tf_largebatch.training.large_batch_model import LargeBatchModel

__all__ = ["LargeBatchModel"]
