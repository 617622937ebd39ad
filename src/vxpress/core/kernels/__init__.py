"""Fast implementations of the expensive parts of a model; each is tested against the plain implementation.

:mod:`vxpress.core.rule` decides which implementation runs where. ``count_likelihood`` and ``input_layer`` are autograd functions around
the compiled loops of ``count_rows`` and ``sparse_rows``; ``frames``, ``parts``, ``vector`` and ``team`` are the building blocks of
these loops. Numba is imported when the first of them runs, never with the package.
"""
