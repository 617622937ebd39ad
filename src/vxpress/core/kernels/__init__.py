"""Fast forms of the costly pieces of a model, each beside the plain form it is tested against.

``rule`` says which form runs where; ``count_likelihood`` and ``input_layer`` are autograd functions around the
compiled loops of ``count_rows`` and ``sparse_rows``; ``vector`` and ``team`` are what those loops are made of.
Numba is imported with the first of them that runs, never with the package.
"""
