"""The table layer -> rule: importing this package registers every rule with `KERAS`."""

from tf_largebatch.norms.rules import (  # noqa: F401  (they register rules)
    attention,
    convolution,
    convolution_transpose,
    dense,
    einsum,
    elementwise,
    embedding,
    normalization,
    recurrent,
    reversible_embedding,
    spectrogram,
    time_distributed,
)
