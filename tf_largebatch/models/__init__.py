"""Model wrappers with a training step of their own."""

from tf_largebatch.models.conadv import ConAdvModel
from tf_largebatch.models.large_batch import LargeBatchModel

__all__ = ["ConAdvModel", "LargeBatchModel"]
