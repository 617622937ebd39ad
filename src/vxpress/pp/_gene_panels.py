"""``vx.pp.gene_panels``: the genes that each batch measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._mudata import MuData
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.read.adata import check_adata, check_gene_names
from vxpress.bridge.read.columns import get_categories
from vxpress.bridge.read.matrix import count_blocks
from vxpress.bridge.read.panels import GENE_PANELS, panel_sums


@entry
@takes_mudata()
def gene_panels(
    adata: AnnData | MuData,
    panel_key: str,
    *,
    modality: str | None = None,
    layer: str | None = None,
    min_expected: float = 5.0,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Find which genes each batch measured, after ``anndata.concat(..., join="outer")`` has filled the others with zeros.

    A gene counts as not measured in a batch if no cell of the batch has a count of it, although at least
    ``min_expected`` would be expected from its share in the other batches. A rare gene without counts is taken for
    measured: its zeros say little and do no harm. If you know the panels, write the table yourself; this function
    guesses, so it raises a warning that says how many genes it found.

    Call it on all genes, also those that are not modelled. A fit with ``panel_key=`` counts size factors itself, over the
    modelled genes that the panel of a cell measured and the genes outside the model that all panels measured, because
    ``obs["library_size"]`` counts genes that other panels lack. Denoised values are shares in the molecules of all genes.

    Parameters
    ----------
    adata
        Cells of all batches with raw counts, n_obs x n_vars.
    panel_key
        Column of ``obs`` with the panel of each cell, usually the batch.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``. Results are written into it.
    layer
        Layer with the counts; ``None`` reads ``adata.X``.
    min_expected
        Expected number of counts in a batch from which their absence is no chance. The default is 5: by chance alone,
        such a gene has no count with probability 0.007.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.varm["gene_panels"]`` : :class:`pandas.DataFrame` (dtype ``bool``)
        Whether a panel measured a gene, n_vars x panels, read by :func:`vxpress.tl.fit_vae` with ``panel_key=``.
    ``adata.uns["gene_panels"]``
        ``params``.

    Raises
    ------
    KeyError
        If the column or the layer does not exist.
    ValueError
        If the matrix does not hold counts, the panel of a cell is missing, there is a single panel, or
        ``varm["gene_panels"]`` was not written by this function.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(200, 50, n_batches=2, rng=0)
    >>> first = (adata.obs["batch"] == "batch_0").to_numpy()
    >>> counts = adata.X.toarray()
    >>> counts[first, :20] = 0
    >>> adata.X = counts
    >>> vx.pp.gene_panels(adata, "batch")
    >>> int(adata.varm["gene_panels"]["batch_0"].sum()) >= 30
    True
    """
    check_adata(adata, copy=copy)
    check_gene_names(adata)
    check_range("min_expected", min_expected, 0.0, 1e9)
    found = get_categories(adata.obs, panel_key, argument="panel_key")
    if len(found.names) < 2:
        msg = f"obs[{panel_key!r}] has the panel {found.names[0]!r} only; panels are found by comparing two or more."
        raise ValueError(msg)
    check_replaceable(adata, GENE_PANELS, ours=_is_record, cure="Delete it first.", varm=[GENE_PANELS])
    sums_pg = np.zeros((len(found.names), adata.n_vars))
    for rows, block in count_blocks(adata, layer):
        sums_pg += panel_sums(block, found.code_n[rows], len(found.names))
    measured_pg = _measured(sums_pg, float(min_expected))
    _report(found.names, measured_pg, panel_key)
    table = pd.DataFrame(dict(zip(found.names, measured_pg, strict=True)), index=adata.var_names)
    params = {"panel_key": panel_key, "min_expected": float(min_expected)} | ({} if layer is None else {"layer": layer})
    adata = own(adata, copy=copy)
    Results(varm={GENE_PANELS: table}, uns={GENE_PANELS: {"params": params}}).write(adata)
    return adata if copy else None


def _measured(sums_pg: np.ndarray, min_expected: float) -> np.ndarray:
    """Return which genes each panel measured, bool (p, g)."""
    total_p = sums_pg.sum(1)
    measured_pg = sums_pg > 0
    for _ in range(2):
        # molecules of the panels that measured a gene; the first round takes those that have counts of it
        among_g = total_p @ measured_pg
        expected_pg = total_p[:, None] * (sums_pg.sum(0) / np.maximum(among_g, 1.0))
        measured_pg = (sums_pg > 0) | (expected_pg < min_expected)
    return measured_pg


def _report(names: tuple[str, ...], measured_pg: np.ndarray, panel_key: str) -> None:
    lacking = {name: int(n) for name, n in zip(names, (~measured_pg).sum(1), strict=True) if n}
    if not lacking:
        logg.info(f"    every panel of obs[{panel_key!r}] measured all genes")
        return
    shown = ", ".join(f"{name!r} ({n})" for name, n in list(lacking.items())[:5]) + (
        ", ..." if len(lacking) > 5 else ""
    )
    logg.warning(
        f"Genes without a single count in a panel, although counts were expected, are taken for not measured: {shown} of the "
        f"{measured_pg.shape[1]} genes. Check adata.varm[{GENE_PANELS!r}]: cells of a panel may also lack a gene because of their type."
    )


def _is_record(stored: Mapping[str, Any]) -> bool:
    params = stored.get("params")
    return isinstance(params, Mapping) and {"panel_key", "min_expected"} <= set(params)
