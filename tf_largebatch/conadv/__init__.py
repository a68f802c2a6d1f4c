"""ConAdv: adversarial training whose attack runs concurrently with the training step."""

from tf_largebatch.conadv.model import ConAdvModel
from tf_largebatch.conadv.robust_accuracy import accuracy_under_attack
from tf_largebatch.conadv.robust_metrics import metrics_under_attack

__all__ = ["ConAdvModel", "accuracy_under_attack", "metrics_under_attack"]
