"""The train function of ConAdvModel on JAX."""


class TrainFunction:
    """Not there yet."""
