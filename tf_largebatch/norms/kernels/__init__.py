"""How a contraction is computed on a device: one file a form."""
