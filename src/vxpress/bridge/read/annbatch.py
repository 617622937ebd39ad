"""Rows of CSR matrices in zarr stores through annbatch, which reads many places of a store at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from anndata.abc import CSRDataset
from scipy import sparse

from vxpress.bridge.read.zarr_codecs import fast_codecs

# of a stored CSR matrix
ARRAYS = ("data", "indices", "indptr")


def annbatch_reads(matrices: Sequence[Any]) -> bool:
    """Whether annbatch is installed, which needs Python 3.12, and can read all of these matrices: CSR in zarr, of equal types.

    With several types, the row pointers of annbatch 0.3.1 may overflow.
    """
    if find_spec("annbatch") is None:
        return False
    if not all(isinstance(matrix, CSRDataset) and matrix.backend == "zarr" for matrix in matrices):
        return False
    return len({tuple(matrix.group[name].dtype for name in ARRAYS) for matrix in matrices}) == 1


class SeveralPlaces:
    """The rows of some CSR matrices below each other, for example of the AnnData of a collection.

    The order of the cells, their minibatches and which process reads them are decided elsewhere: annbatch is asked for certain
    rows, by a sampler of its own kind. Its ready-made samplers shuffle whole chunks, and for several processes they
    leave out the last cells of every epoch.
    """

    def __init__(self, matrices: Sequence[CSRDataset]) -> None:
        from annbatch import Loader

        self._wanted = _wanted()
        self._lock = threading.Lock()
        # explicit: the default of preload_to_gpu is another with cupy
        self._loader = Loader(batch_sampler=self._wanted, to=None, preload_to_gpu=False, return_index=False)
        self._loader.add_datasets(list(matrices))
        with fast_codecs():
            # arrays are opened by the first read
            self.read([(start, start + 1) for start in _starts(matrices)])

    def read(self, spans: Sequence[tuple[int, int]]) -> sparse.csr_matrix:
        """Read the rows of some spans, each from its first to before its last row, below each other."""
        with self._lock:
            self._wanted.spans = spans
            (found,) = (batch["X"] for batch in self._loader)
        return sparse.csr_matrix(found)


def _starts(matrices: Sequence[CSRDataset]) -> Iterator[int]:
    start = 0
    for matrix in matrices:
        if matrix.shape[0]:
            yield start
        start += matrix.shape[0]


def _wanted() -> Any:
    """Return a sampler that asks for the spans it was given, in their order, as one minibatch."""
    from annbatch.abc import Sampler

    class Wanted(Sampler):  # type: ignore[misc]
        spans: Sequence[tuple[int, int]] = ()
        batch_size = None
        shuffle = False

        def n_batches(self, n_obs: int) -> int:
            return 1

        def validate(self, n_obs: int) -> None:
            if any(not 0 <= start < stop <= n_obs for start, stop in self.spans):
                msg = f"Rows {self.spans} are not among the {n_obs} rows."
                raise ValueError(msg)

        def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
            n = sum(stop - start for start, stop in self.spans)
            yield {"requests": [slice(start, stop) for start, stop in self.spans], "splits": [np.arange(n)]}

    return Wanted()
