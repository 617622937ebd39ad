"""Binomial thinning of counts in CSR rows: each molecule is kept with a probability of its cell.

A molecule has a random number from 0 to 127 and is kept if that is below the limit of its cell.  A random word of 64
bits serves eight molecules, whose numbers are compared all at once.  The words are those of splitmix64 (Steele et al.
2014): every row has a sequence of its own, whose k-th word serves the k-th entry, and the word of an entry begins the
sequence of its further molecules.  So a row is thinned in the same way by whichever thread.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from vxpress.core.kernels.parts import finish, meet, take
from vxpress.core.kernels.team import CACHED, INNER
from vxpress.core.rule import LARGE_COUNT

# probabilities are multiples of 1 / LEVELS
LEVELS = 128
PER_WORD = 8
# unsigned, because numba turns a mixture of signed and unsigned numbers into floating point
STEP, FIRST, SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
S7, S27, S30, S31, S56 = (np.uint64(s) for s in (7, 27, 30, 31, 56))
# one in each byte, the highest bit of each byte, and the other bits
ONES, HIGHEST, OTHERS = (np.uint64(int(byte * 8, 16)) for byte in ("01", "80", "7f"))


@njit(**INNER)
def _word(at):
    """Compute the random word of a position."""
    at = (at ^ (at >> S30)) * FIRST
    at = (at ^ (at >> S27)) * SECOND
    return at ^ (at >> S31)


@njit(**INNER)
def _kept(word, limits, x):
    """Count those of the first ``x`` numbers in a word (one to eight) that are below the limit.

    Each byte of ``limits`` is 127 plus the limit, so its difference from a number below it has the highest bit.
    """
    below = (limits - (word & OTHERS)) & HIGHEST
    below <<= np.uint64(8 * (PER_WORD - x))
    return np.int32(((below >> S7) * ONES) >> S56)


@njit(**INNER)
def _keep(key, limits, x, kept):
    """Thin the first eight molecules of every entry of a row; this loop is made of vector instructions."""
    for k in range(x.size):
        word = _word(key + np.uint64(k) * STEP)
        count = _kept(word, limits, min(max(np.int64(x[k]), 1), PER_WORD))
        kept[k] = count if x[k] > 0 else np.int32(0)


@njit(**INNER)
def _find_more(key, x, kept, at, words, left):
    """List the entries of more molecules than a word serves, up to ``LARGE_COUNT``; larger ones are kept whole.

    The lists are their places, the words at which their sequences begin, and how many molecules are left. Returns their
    number, and whether there are larger ones.
    """
    n, larger = 0, False
    for k in range(x.size):
        # without branches, whose way nobody can guess: the next entry overwrites one that does not count
        at[n] = k
        n += np.int64(x[k] > PER_WORD)
    for i in range(n):
        k = at[i]
        words[i] = _word(key + np.uint64(k) * STEP)
        left[i] = np.int64(x[k]) - PER_WORD
        if x[k] > LARGE_COUNT:
            kept[k], left[i], larger = np.int32(x[k]), 0, True
    return n, larger


@njit(**INNER)
def _keep_more(limits, n, kept, at, words, left, more):
    """Thin eight further molecules of every listed entry at a time, until none is left."""
    while n > 0:
        for i in range(n):
            words[i] += STEP
            count = _kept(_word(words[i]), limits, min(max(left[i], 1), PER_WORD))
            more[i] = count if left[i] > 0 else np.int32(0)
        still = 0
        for i in range(n):
            kept[at[i]] += more[i]
            rest = left[i] - PER_WORD
            at[still], words[still], left[still] = at[i], words[i], rest
            still += np.int64(rest > 0)
        n = still


@njit(**INNER)
def _put(first, genes, kept, out_indices, out_data):
    """Write the entries of which something is kept from the place ``first`` on; return where they end."""
    # unsigned, so that no place is counted from the end
    free = np.uint64(first)
    for k in range(genes.size):
        # the next entry overwrites one of which nothing is kept
        out_indices[free], out_data[free] = genes[k], np.float32(kept[k])
        free += np.uint64(kept[k] > 0)
    return np.int64(free)


@njit(**INNER)
def _find_large(first, last, counts, large, n_large):
    """Append the places of counts above ``LARGE_COUNT``; return how many there are."""
    for k in range(first, last):
        if counts[k] > LARGE_COUNT:
            large[n_large] = k
            n_large += 1
    return n_large


@njit(error_model="numpy", nogil=True, **CACHED)
def thin(board, cuts, key, limits, rows, indptr, indices, data, bounds, out_indices, out_data, large, n_large):
    """Write the thinned rows without zeros, in parts of the rows between two cuts; see :mod:`.parts`.

    ``limits`` are uint64, from 0 to ``LEVELS``, one per row. ``bounds`` (rows, 2) has the place of each row in the output, which has
    space for all its entries, and receives where it ends. Counts above ``LARGE_COUNT`` are written unchanged: ``large`` receives
    their places in the output, those of a part from the place of its first row on, and ``n_large`` how many each part has.
    """
    part = take(board, 0)
    while part < cuts.size - 1:
        first, last, longest, n = cuts[part], cuts[part + 1], 0, 0
        for i in range(first, last):
            longest = max(longest, indptr[rows[i] + 1] - indptr[rows[i]])
        kept, more, left = np.empty(longest, np.int32), np.empty(longest, np.int32), np.empty(longest, np.int64)
        at, words, found = np.empty(longest, np.int64), np.empty(longest, np.uint64), large[bounds[first, 0] :]
        for i in range(first, last):
            here, begin = slice(indptr[rows[i]], indptr[rows[i] + 1]), bounds[i, 0]
            own, limit = _word(key + np.uint64(i) * STEP), limits[i] * ONES + OTHERS
            _keep(own, limit, data[here], kept)
            n_more, larger = _find_more(own, data[here], kept, at, words, left)
            _keep_more(limit, n_more, kept, at, words, left, more)
            end = _put(begin, indices[here], kept, out_indices, out_data)
            if larger:
                n = _find_large(begin, end, out_data, found, n)
            bounds[i, 1] = end
        n_large[part] = n
        finish(board, 0)
        part = take(board, 0)
    meet(board, 0, cuts.size - 1)
