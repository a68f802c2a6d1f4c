"""Model wrappers with a training step of their own."""

from tf_largebatch.models.conadv import ConAdvModel
from tf_largebatch.models.large_batch import LargeBatchModel
from tf_largebatch.models.under_attack import accuracy_under_attack

__all__ = ["ConAdvModel", "LargeBatchModel", "accuracy_under_attack"]
