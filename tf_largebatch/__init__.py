"""Large-batch training."""
