"""``vx.tl.rank_genes_groups``: genes that differ between groups, in scanpy's layout."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.composition import LIBRARY, RelativeTo, requested_relative_to
from vxpress.bridge.ask.differential import Question, ask
from vxpress.bridge.ask.groups import CellSets, Groups
from vxpress.bridge.ask.ranking import layout
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.fits.stored_cells import StoredCells, layer_of
from vxpress.bridge.read.adata import check_adata, check_gene_names
from vxpress.bridge.read.matrix import get_matrix

DEFAULT_NAME = "rank_genes_groups"


@entry
@takes_mudata("features")
def rank_genes_groups(
    adata: AnnData | MuData,
    groupby: str | None = None,
    model: Model = None,
    *,
    modality: str | None = None,
    key: str = DEFAULT_KEY,
    groups: str | Sequence[Hashable] = "all",
    reference: Hashable = "rest",
    cells: CellSets | None = None,
    reference_cells: CellSets | None = None,
    delta: float = 0.1,
    relative_to: RelativeTo = "library",
    n_cells: int = 500,
    n_draws: int = 5,
    batch_key: str | Unset | None = UNSET,
    sample_key: str | None = None,
    layer: str | Unset | None = UNSET,
    use_counts: bool | None = None,
    n_genes: int | None = None,
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Rank genes by the posterior of their log fold change between groups.

    The result has the format of :func:`scanpy.tl.rank_genes_groups`, so scanpy's plots and functions can use it.

    The test is the change mode of :cite:t:`Boyeau2023`: is the log2 fold change of the mean expression beyond
    ``delta``? Cells are drawn from each group and decoded once for all comparisons. The expectation of the model for a
    group is a prior with the weight of ten molecules; the counts, if available, provide the rest of the evidence. Counts
    are weighted by the model's dispersion and compared within batches. Their uncertainty is measured between cells, or
    between samples. See the guide for all formulas.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and any of the genes of the fit.
    groupby
        Column of ``adata.obs`` with the groups. Categories without cells and cells without a category are ignored.
        Leave it out if ``cells`` is given.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to compare, for example ``"protein"``; results are written into it. With a
        joint fit of several modalities, RNA by default. For a likelihood with a background (``"nb_mixture"``), counts are
        compared without background: each is multiplied by the probability that it comes from the foreground, and
        changes are those of counts per cell, not of shares.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    groups
        Groups to test, or ``"all"``. With ``reference="rest"``, the groups that are not tested still belong to the
        rest. A category that is a number in ``obs`` may be given as a number.
    reference
        ``"rest"`` compares each group with all other cells; the name of a group compares each of the other groups with
        it. A category that is a number in ``obs`` may be given as a number.
    cells
        A set of cells to test, instead of ``groupby``: a boolean array over cells, their positions, their names
        (``adata.obs_names``), or the name of a boolean column of ``adata.obs``. The group is called ``"cells"`` in the
        result; ``cells={"naive": ...}`` gives it a name, and several entries are several groups, which must not
        overlap.
    reference_cells
        The set of cells that ``cells`` are compared with, given in the same way and called ``"reference_cells"`` unless
        it has a name; by default all other cells. Cells in neither set are ignored.
    delta
        Threshold on the absolute log2 fold change. The default, 0.1 or 7 %, is above the effect of differences in
        composition and of residual batch effects on genes that do not change; 0 tests for any difference.
    relative_to
        What counts as no change. ``"library"``: an unchanged share of the size factor, that is, of all molecules.
        Shares sum to one, so if few genes take many molecules of a group, all its other genes go down; a warning names
        these genes. ``"median"``: the median log2 fold change over genes with 50 molecules or more, which assumes that
        fewer than half of the genes change, as TMM in edgeR does (:cite:t:`Robinson2010`). A list of genes: together,
        these genes do not change.
    n_cells
        Cells decoded per group. The counts of all cells are read in any case. The mean over 500 cells is much more
        precise than a prior with the weight of ten molecules needs.
    n_draws
        Posterior draws per decoded cell.
    batch_key
        Column of ``adata.obs`` within whose categories groups are compared; by default the batch of the fit, ``None``
        for none. Groups that share no batch are compared with the model's batch correction, and a warning is raised.
    sample_key
        Column of ``adata.obs`` with the units of replication, such as donors. Without it cells count as replicates,
        and the result does not generalise to other donors.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit read.
    use_counts
        ``None`` uses the counts if available and raises a warning if not (for example if ``X`` was normalised in
        place); ``True`` requires them; ``False`` compares the expectations of the model, with the uncertainty that
        counts would have.
    n_genes
        Genes to write per group; by default all.
    key_added
        Name under ``adata.uns``; by default ``"rank_genes_groups"``.
    rng
        Seed of the cells drawn and of the posterior draws, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.uns["rank_genes_groups" | key_added]["names"]`` : structured :class:`numpy.ndarray` (dtype ``object``)
        Genes, one field per group, ordered by ``scores``, genes that are up first.
    ``adata.uns[...]["scores"]`` : structured :class:`numpy.ndarray` (dtype ``float32``)
        Normal quantile of the posterior tail beyond ``delta`` (towards no change), positive for genes that are up, 0 if
        both sides of the threshold are equally likely.
    ``adata.uns[...]["logfoldchanges"]`` : structured :class:`numpy.ndarray` (dtype ``float32``)
        log2 fold change of the mean expression, shrunk towards the expectation of the model if there are few counts.
    ``adata.uns[...]["pvals"]`` : structured :class:`numpy.ndarray` (dtype ``float64``)
        Twice the posterior probability that the change is not beyond ``delta`` in the direction of the score, at most
        1. If the true change is within ``delta``, it falls below any ``p`` about as often as ``p`` says, or less.
    ``adata.uns[...]["pvals_adj"]`` : structured :class:`numpy.ndarray` (dtype ``float64``)
        The same after Benjamini and Hochberg, over all ranked genes of the group.
    ``adata.uns[...]["params"]`` : :class:`dict`
        scanpy's entries, ``"counts"`` (whether counts were used) and the arguments; with ``relative_to``, ``"shift"``
        is the log2 fold change of every group that counts as none.

    Raises
    ------
    KeyError
        If there is no such fit, posterior, column of ``obs``, layer, or gene of ``relative_to``.
    ValueError
        If a group is unknown, only one group has cells, sets of cells overlap or are empty, ``use_counts=True`` and
        there are no counts, the fit is Gaussian, or something else is stored under ``key_added``.
    TypeError
        If neither ``groupby`` nor ``cells`` is given, or a set of cells is of a type that does not select cells.

    Examples
    --------
    >>> import scanpy as sc
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5, denoised=False)
    >>> vx.tl.rank_genes_groups(adata, "bulk_labels")
    >>> ranked = adata.uns["rank_genes_groups"]
    >>> ranked["names"]["CD19+ B"].shape
    (765,)
    >>> bool((ranked["scores"]["CD19+ B"][:-1] >= ranked["scores"]["CD19+ B"][1:]).all())
    True

    Markers are up more than twofold. ``sc.tl.filter_rank_genes_groups(adata)`` keeps those that are detected in many
    cells of the group. If the fit wrote the layer, ``sc.pl.rank_genes_groups_matrixplot(adata, n_genes=3,
    key="rank_genes_groups_filtered", layer="vae_normalized", standard_scale="var")`` shows them.

    >>> vx.tl.rank_genes_groups(adata, "bulk_labels", delta=1)
    >>> "CD79A" in adata.uns["rank_genes_groups"]["names"]["CD19+ B"][:3]
    True

    Any two sets of cells, here given by names and by a mask:

    >>> naive = adata.obs_names[adata.obs["bulk_labels"] == "CD4+/CD45RA+/CD25- Naive T"]
    >>> vx.tl.rank_genes_groups(
    ...     adata,
    ...     cells={"naive": naive},
    ...     reference_cells={"monocytes": adata.obs["bulk_labels"] == "CD14+ Monocyte"},
    ...     key_added="naive_or_monocyte",
    ... )
    >>> float(
    ...     sc.get.rank_genes_groups_df(adata, "naive", key="naive_or_monocyte").set_index("names").loc["LYZ", "scores"]
    ... ) < 0
    True
    """
    check_adata(adata, copy=copy)
    check_gene_names(adata)
    name = DEFAULT_NAME if key_added is None else key_added
    check_name("key_added", name)
    check_replaceable(adata, name, ours=lambda stored: {"names", "scores", "params"} <= set(stored))
    check_range("delta", delta, 0.0, 20.0)
    check_range("n_cells", n_cells, 1, 10_000_000, integer=True)
    check_range("n_draws", n_draws, 1, 100_000, integer=True)
    if n_genes is not None:
        check_range("n_genes", n_genes, 1, 10_000_000, integer=True)
    generator = seed_of(rng)
    stored = StoredCells.find(adata, model, key)
    batch = stored.fit.params.batch_key if isinstance(batch_key, Unset) else batch_key
    where = layer_of(adata, stored) if isinstance(layer, Unset) else layer
    if isinstance(layer, str):
        # a layer that the user names must exist, even if the use of counts is optional
        get_matrix(adata, layer)
    _check_sets(
        groupby, cells, reference_cells, default=isinstance(groups, str) and groups == "all" and reference == "rest"
    )
    if groupby is not None:
        compared = Groups.read(adata, groupby, groups, reference)
    else:
        compared = Groups.of_cells(adata, cells, reference_cells)
    question = Question(compared, float(delta), n_cells, n_draws, batch, sample_key, requested_relative_to(relative_to))
    start = logg.info("ranking genes")
    with progress_bar("rank_genes_groups", progress):
        answer = ask(adata, stored, question, layer=where, use_counts=use_counts, rng=generator)
    params: dict[str, Any] = {
        # required by scanpy's plots; sets of cells are not a column, so plots by group need an explicit groupby=
        "groupby": "cells" if groupby is None else groupby,
        "reference": question.groups.reference_name,
        "method": "vae",
        "use_raw": False,
        "layer": where,
        "corr_method": "benjamini-hochberg",
        "key": key,
        "delta": float(delta),
        "n_cells": int(n_cells),
        "n_draws": int(n_draws),
        "counts": answer.counts,
    }
    params |= {k: v for k, v in (("batch_key", batch), ("sample_key", sample_key)) if v is not None}
    if question.relative_to != LIBRARY:
        params["relative_to"] = (
            relative_to if isinstance(relative_to, str) else np.array(question.relative_to, dtype=object)
        )
        params["shift"] = np.array(list(answer.shifts.values()))
    results = Results(of_genes={name: {"params": params, **layout(answer.genes, answer.comparisons, n_genes)}})
    adata = own(adata, copy=copy)
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None


def _check_sets(groupby: Any, cells: Any, reference_cells: Any, *, default: bool) -> None:
    """Raise an error unless either groups of a column or sets of cells are given."""
    if groupby is None and cells is None:
        msg = "Neither groupby= nor cells= was given. Name a column of adata.obs, groupby='leiden', or give sets of cells, cells=..., reference_cells=..."
        raise TypeError(msg)
    if groupby is not None and (cells is not None or reference_cells is not None):
        msg = "groupby= names groups, while cells= and reference_cells= are sets of cells; give one of the two."
        raise ValueError(msg)
    if groupby is None and not default:
        msg = "groups= and reference= name groups of groupby=, which was not given. Pass groupby=, or compare cells= with reference_cells=."
        raise ValueError(msg)
