"""How JAX computes a contraction on a device: one file a form, and one file for each kind that chooses among them.

`convolution.py` and `depthwise.py` choose; `convolution_*.py` and `depthwise_*.py` are their forms. Products are in
`matmul.py`, lookups of ids in `lookup.py`, which takes the ids in place of `a`. Every form takes
the layer's input `a` and the gradient `d` at its output, both with the examples on axis 0 and the channels last, and
adds the contributions up in float32 whatever the dtype of `a` and `d`. All shapes are known when a step is traced.
"""
