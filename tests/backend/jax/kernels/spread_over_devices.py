"""Run by test_jax_convolution_forms.py on four virtual devices."""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))

from convolution_geometries import random_case, reference

from tf_largebatch.backend.jax.kernels import convolution_direct, convolution_gram, convolution_pallas

a, d, window, _ = random_case("1d, stride 3", 8)
squares, gradient = reference(a, d, window, 1)
options = {"interpret": True, "tiles": convolution_pallas.Tiles(rows=16, columns=8, positions=16)}
FORMS = {
    "pallas": lambda a, d: convolution_pallas.norms_and_gradient(a, d, window, 1, **options),
    "pallas, norms only": lambda a, d: (convolution_pallas.squared_norms(a, d, window, 1, **options),),
    "direct, in chunks": lambda a, d: convolution_direct.norms_and_gradient(a, d, window, 1),
    "gram": lambda a, d: (convolution_gram.squared_norms(a, d, window, 1),),
}
convolution_direct.chunk_of = lambda size: 4  # of which each device has one

mesh = Mesh(np.array(jax.devices()), ("batch",))
for spec in (PartitionSpec("batch"), PartitionSpec()):
    placed = jax.device_put((a, d), NamedSharding(mesh, spec))
    for name, form in FORMS.items():
        compiled = jax.jit(form).lower(*placed).compile()
        found = compiled(*placed)
        np.testing.assert_allclose(found[0], squares, rtol=2e-5, err_msg=name)
        if len(found) > 1:
            np.testing.assert_allclose(found[1], gradient, rtol=1e-5, atol=1e-5, err_msg=name)
        program = compiled.as_text()
        moved = [kind for kind in ("all-gather", "collective-permute", "all-to-all") if f" {kind}(" in program]
        assert not moved, f"{name} moves examples between devices: {moved}"
