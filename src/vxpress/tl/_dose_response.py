"""``vx.tl.dose_response``: predicted change of genes along the dose of a perturbation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress._names import find_name
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._similar import similar_names
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.arguments import named_genes
from vxpress.bridge.ask.dose_response import curves, observed_doses
from vxpress.bridge.ask.perturbation.arguments import check_counts
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.populations import Populations
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.fit import Fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.perturbations import PerturbationTable


@entry
@takes_mudata()
def dose_response(
    adata: AnnData | MuData,
    perturbation: Hashable,
    *,
    modality: str | None = None,
    genes: str | Sequence[str] | np.ndarray,
    doses: Sequence[float] | None = None,
    n_doses: int = 25,
    level: float = 0.95,
    n_resamples: int = 200,
    model: Model = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Predict how the expression of genes changes along the dose of a perturbation, with intervals.

    Control cells are decoded with the perturbation at each dose. The change of a gene is the mean of
    :math:`\log(1 + 10^4 x / l)` over these cells less that of the control cells as they are, with the counts :math:`x` of
    a cell and its size factor :math:`l`. It is averaged with the curve that describes the changes measured in ``adata``
    best by least squares, an amplitude for each gene times a Hill function of the dose for all genes. As in
    :func:`predict_perturbation`, the latter has more weight for genes whose change was measured precisely.

    The intervals show how much measured curves would differ with other cells: the errors of the measured changes, from
    the variances of control and treated cells, are drawn anew, and the curves are estimated again. They do not include what
    a Hill function, which never falls and has one shape for all genes, cannot describe: compare with the measured changes.

    Parameters
    ----------
    adata
        Cells with a stored posterior of a fit with ``dose_key=`` and counts: control cells, and cells with the
        perturbation alone, whose changes are measured. It is not changed.
    perturbation
        Name of a single perturbation of the fit.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``; its fit has to be one of this modality alone.
    genes
        Names of the modelled genes to return, or a boolean array over ``adata.var``.
    doses
        Doses in the units of ``obs``; by default ``n_doses`` from 0 to the highest of the fit, equally spaced on a
        logarithmic axis above the lowest, and the observed ones.
    n_doses
        Number of these doses, without the observed ones.
    level
        Level of the intervals of each gene and dose.
    n_resamples
        Number of draws of the measurement errors.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer with the counts; by default that of the fit, and ``None`` reads ``adata.X``.
    rng
        Seed of the draws, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.

    Returns
    -------
    A :class:`pandas.DataFrame` with a row for each gene and dose:

    - ``gene``, ``dose``;
    - ``change``, the predicted change, and its interval ``low`` to ``high`` (NaN if no dose was measured);
    - ``measured``, ``measured_error``, the measured change and its standard error, and ``n_cells``, the number of
      treated cells; NaN and 0 at other doses than the observed ones;
    - ``extrapolated``, whether the dose is outside the range of the fit.

    Raises
    ------
    KeyError
        If there is no such fit, posterior, gene, column or layer.
    ValueError
        If the fit has no doses, the perturbation is unknown, a dose is negative, or there are no control cells.

    See Also
    --------
    vxpress.pl.dose_response : curves with measured changes.
    predict_perturbation : counts of cells under a perturbation.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> adata = vx.datasets.simulate(400, 60, rng=0)
    >>> adata.obs["dose"] = np.random.default_rng(0).choice([0.0, 1.0, 10.0], 400)
    >>> adata.obs["drug"] = np.where(adata.obs["dose"] > 0, "A", "control")
    >>> vx.tl.fit_vae(adata, perturbation_key="drug", dose_key="dose", control="control", max_epochs=3)
    >>> table = vx.tl.dose_response(adata, "A", genes=adata.var_names[:2], doses=[0, 5, 10])
    >>> list(table["n_cells"] > 0)
    [False, False, True, False, False, True]
    """
    check_adata(adata, copy=False)
    fit = find_fit(adata, model, key)
    table = _table(fit)
    check_counts(fit)
    name = _known(table, perturbation)
    check_range("level", level, 0.0, 1.0)
    check_range("n_doses", n_doses, 2, 10_000, integer=True)
    check_range("n_resamples", n_resamples, 10, 1_000_000, integer=True)
    at = _modelled(adata, fit, genes)
    populations = Populations.find(adata.obs, table.key, control=table.control, target=name, groupby=None, groups=None)
    cells = PerturbedCells.read(adata, populations, model, key, layer, keep=False)
    dose_x = _grid(cells, table, name, doses, n_doses)
    p = table.names.index(name)
    low, high = table.low[p], table.high[p]
    _warn(name, dose_x, low, high)
    start = logg.info(f"decoding doses of {name}")
    with progress_bar("dose_response", progress):
        seed = int(seed_of(rng).integers(2**31))
        found = curves(cells, table, name, dose_x, level=level, n_resamples=n_resamples, seed=seed)
    logg.info("    finished", time=start)
    out = found.table(list(cells.genes[at]), at, low=low, high=high)
    out.attrs = {"perturbation": name, "dose_key": table.dose_key, "level": float(level)}
    return out


def _table(fit: Fit) -> PerturbationTable:
    table = fit.covariates.perturbations
    if table is None or table.dose_key is None:
        msg = "The fit has no doses of perturbations. Fit with vx.tl.fit_vae(adata, perturbation_key=..., dose_key=..., control=...)."
        raise ValueError(msg)
    return table


def _known(table: PerturbationTable, perturbation: Hashable) -> str:
    name = find_name(perturbation, table.names)
    if name is None:
        msg = (
            f"perturbation={perturbation!r} is not a single perturbation of the fit, which knows {list(table.names)}."
            f"{similar_names([perturbation], table.names)}"
        )
        raise ValueError(msg)
    return name


def _modelled(adata: AnnData, fit: Fit, genes: str | Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the positions of the genes among the modelled ones."""
    names, modelled = named_genes(adata, genes), pd.Index(fit.genes[fit.modelled_g], dtype=object)
    at = modelled.get_indexer(names)
    if not len(at) or (at < 0).any():
        unknown = list(names[at < 0])
        msg = f"genes= names {unknown[:5] or 'no gene'}; genes that the fit models are expected.{similar_names(unknown, modelled)}"
        raise KeyError(msg)
    return np.asarray(at)


def _grid(
    cells: PerturbedCells, table: PerturbationTable, name: str, doses: Sequence[float] | None, n_doses: int
) -> np.ndarray:
    """Return the doses to decode, in increasing order."""
    if doses is not None:
        given = np.asarray(doses)
        right = given.dtype.kind in "iuf" and given.size and np.isfinite(given).all() and (given >= 0).all()
        if not right:
            msg = f"doses={doses!r} was given; a list of numbers that are not negative is expected, in the units of obs[{table.dose_key!r}]."
            raise ValueError(msg)
        return np.unique(given.astype(np.float64))
    p = table.names.index(name)
    low, high = table.low[p], table.high[p]
    lowest = low / 4 if low < high else high / 100
    grid = np.concatenate(([0.0], np.geomspace(lowest, high, n_doses - 1)))
    known = observed_doses(cells, table, name)
    # doses are stored in single precision
    far = [dose for dose in grid if not np.isclose(known, dose, rtol=1e-5).any()]
    return np.unique(np.concatenate((far, known)))


def _warn(name: str, dose_x: np.ndarray, low: float, high: float) -> None:
    if (dose_x > high * 1.001).any():
        logg.warning(
            f"Doses of {name!r} up to {dose_x.max():g} were requested, but the fit has seen {low:g} to {high:g}. Above, the curve is an extrapolation."
        )
    if low == high:
        logg.warning(
            f"The fit has seen one dose of {name!r}, {high:g}, which says nothing about the shape of the curve between 0 and this dose or beyond."
        )
