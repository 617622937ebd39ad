"""Binomial thinning of counts in CSR rows: each molecule is kept with a probability of its cell.

A molecule has a random number from 0 to 127 and is kept if that is below the limit of its cell.  A random word of 64
bits serves eight molecules, whose numbers are compared all at once.  It is the hash (splitmix64, Steele et al. 2014) of
a key plus a multiple of an odd constant.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.team import CACHED

OPTIONS = {"error_model": "numpy", "nogil": True}
# probabilities are multiples of 1 / LEVELS
LEVELS = 128
# larger counts are left to the caller: numpy's algorithm takes the same time for any count
MAX_COUNT = 256
PER_WORD = 8
# unsigned, because numba turns a mixture of signed and unsigned numbers into floating point
STEP, FIRST, SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
S7, S27, S30, S31, S56 = (np.uint64(s) for s in (7, 27, 30, 31, 56))
# one in each byte, the highest bit of each byte, and the other bits
ONES, HIGHEST, OTHERS = (np.uint64(int(byte * 8, 16)) for byte in ("01", "80", "7f"))


@njit(**OPTIONS)
def _word(at):
    """Compute the random word of a position."""
    at = (at ^ (at >> S30)) * FIRST
    at = (at ^ (at >> S27)) * SECOND
    return at ^ (at >> S31)


@njit(**OPTIONS)
def _kept(word, limits, x):
    """Count those of the first ``x`` numbers in a word (one to eight) that are below the limit.

    Each byte of ``limits`` is 127 plus the limit, so its difference from a number below it has the highest bit.
    """
    below = (limits - (word & OTHERS)) & HIGHEST
    below <<= np.uint64(8 * (PER_WORD - min(x, PER_WORD)))
    return np.int64(((below >> S7) * ONES) >> S56)


@njit(**OPTIONS, **CACHED)
def thin(key, limits, rows, indptr, indices, data, out_indptr, out_indices, out_data, large, large_rows):
    """Write the thinned rows as CSR without zeros; return how many counts above ``MAX_COUNT`` are written unchanged.

    ``limits`` are uint64, from 0 to ``LEVELS``, one per row. The outputs have space for all entries of the rows, and one
    more. ``large`` receives the positions of the unchanged counts in the output, ``large_rows`` their rows in it.
    """
    free, n_large, at = 0, 0, key
    out_indptr[0] = 0
    for n in range(rows.size):
        limit = limits[n] * ONES + OTHERS
        for k in range(indptr[rows[n]], indptr[rows[n] + 1]):
            x = np.int64(data[k])
            if x < 1:
                continue
            at += STEP
            kept = _kept(_word(at), limit, x)
            if x > MAX_COUNT:
                large[n_large], large_rows[n_large] = free, n
                n_large += 1
                kept = x
            else:
                x -= PER_WORD
                while x > 0:
                    at += STEP
                    kept += _kept(_word(at), limit, x)
                    x -= PER_WORD
            # the next entry overwrites one of which nothing is kept
            out_indices[free], out_data[free] = indices[k], kept
            free += kept > 0
        out_indptr[n + 1] = free
    return n_large
