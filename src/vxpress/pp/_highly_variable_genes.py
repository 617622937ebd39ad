"""Highly variable genes from raw counts, read in blocks of rows, per batch."""

from __future__ import annotations

import operator
import warnings
from functools import partial
from importlib.util import find_spec
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from vxpress._entry import entry
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, own
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.blockwise import is_dask
from vxpress.bridge.read.complete import check_complete
from vxpress.bridge.read.matrix import check_counts, get_matrix, matrix_name, naming_other_counts, row_blocks
from vxpress.bridge.read.opened import on_disk
from vxpress.pp._residuals import residual_moments
from vxpress.pp._shared import batch_codes

Flavor = Literal["nb", "pearson_residuals", "seurat_v3", "seurat_v3_paper", "seurat", "cell_ranger"]
THETA = 100.0
MIN_CELLS = 3
# columns of var, written by this function or by scanpy's
COLUMNS = (
    "highly_variable",
    "highly_variable_rank",
    "highly_variable_nbatches",
    "highly_variable_intersection",
    "means",
    "variances",
    "variances_norm",
    "dispersions",
    "dispersions_norm",
    "residual_variances",
)


@entry
@takes_mudata()
def highly_variable_genes(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    n_top_genes: int = 2000,
    layer: str | None = None,
    batch_key: str | None = None,
    flavor: Flavor = "nb",
    theta: float = THETA,
    min_cells: int | None = None,
    subset: bool = False,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Select the genes with the most variation beyond sequencing depth and counting noise.

    The default flavour ranks genes by the variance of negative binomial Pearson residuals :cite:p:`Lause2021`,

    .. math::

        r_{ng} = \frac{x_{ng} - \mu_{ng}}{\sqrt{\mu_{ng} + \mu_{ng}^2 / \theta}}, \qquad
        \mu_{ng} = \frac{\sum_{g'} x_{ng'} \, \sum_{n'} x_{n'g}}{\sum_{n'g'} x_{n'g'}},

    Residuals are clipped to :math:`\pm\sqrt{n}`, where :math:`n` is the number of cells. They are also clipped from
    above to the third largest residual of the gene, or to 0 if fewer are positive (``min_cells``). With ``batch_key``,
    residuals, their variance and :math:`n` are those of each batch, and the third largest residual is that of all
    batches together. Genes are then ranked by the number of batches in which they are among the top genes, and by their
    median rank in these batches. This needs no loess fit. Raw counts are read in blocks of rows, from
    memory or from disk, and with dask by its workers. The mean of a residual depends on the sum of its gene, so there
    are two steps. Counts on disk are read once, and kept for the second step in up to 1 GiB of memory, which holds
    350 million counts above 0; those beyond are read again. Memory does not grow with the matrix further.

    Parameters
    ----------
    adata
        Annotated matrix, cells by genes, with raw counts (``"seurat"`` and ``"cell_ranger"``: log-normalised values).
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``. Results are written into it.
    n_top_genes
        Number of genes to select; the default is that of most tutorials.
    layer
        Layer to read; ``None`` reads ``adata.X``.
    batch_key
        Column of ``adata.obs`` with the batch of each cell. Genes that differ only between batches are then not
        selected.
    flavor
        ``"nb"`` is described above.
        ``"pearson_residuals"`` calls :func:`scanpy.experimental.pp.highly_variable_genes`, which agrees with ``"nb"``
        at ``min_cells=1`` except for the clipping of batches of different sizes. All others call
        :func:`scanpy.pp.highly_variable_genes`.
    theta
        Inverse overdispersion of the null model (variance ``mu + mu**2 / theta``), for ``"nb"`` and
        ``"pearson_residuals"``.
        The default is that of the paper, based on technical control data; ``inf`` gives Poisson residuals.
    min_cells
        Number of cells that must stand out for a gene to be variable, for ``"nb"``: residuals are clipped to the
        ``min_cells``-th largest of their gene. ``None`` means 3, as in :func:`scanpy.pp.filter_genes` in most
        tutorials, and at most a tenth of the cells. If a gene has tens of molecules in one cell and almost none in the
        others, this is more often an artefact than biology. With the variance of the paper, ``min_cells=1``, a third of
        the 2,000 genes selected on the 2,700 PBMCs of 10x Genomics are of this kind.
    subset
        Whether to keep only the selected genes.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns `None` if `copy=False`, else returns an `AnnData` object.
    Sets the following fields:

    `adata.var['highly_variable']` : :class:`pandas.Series` (dtype `bool`)
        Whether the gene is selected.
    `adata.var['highly_variable_rank']` : :class:`pandas.Series` (dtype `float32`)
        Rank by residual variance, 0 for the most variable gene. With batches, the median over the batches that select
        the gene. NaN outside the top genes.
    `adata.var['means']`, `adata.var['variances']` : :class:`pandas.Series` (dtype `float64`)
        Mean and variance (divisor n - 1) of the counts.
    `adata.var['residual_variances']` : :class:`pandas.Series` (dtype `float64`)
        Variance of the residuals, averaged over batches.
    `adata.var['highly_variable_nbatches']`, `adata.var['highly_variable_intersection']` : :class:`pandas.Series`
        With ``batch_key``: the number of batches that select the gene, and whether all of them do.
    `adata.uns['hvg']` : :class:`dict`
        The flavour, and the matrix that was read.

    Raises
    ------
    KeyError
        If the layer or the batch column does not exist.
    ValueError
        If the matrix does not contain counts, if batches are missing, if an argument is out of range, or if a column
        already exists and ``uns["hvg"]`` does not show that this function or scanpy's wrote it. Their own columns are
        replaced.
    ImportError
        If the flavour needs scikit-misc and it is not installed.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.pp.highly_variable_genes(adata, n_top_genes=100)
    >>> int(adata.var["highly_variable"].sum())
    100
    >>> adata.var["highly_variable_rank"].idxmin()
    'GNLY'
    """
    check_adata(adata, copy=copy)
    _check_replaceable(adata)
    if flavor not in get_args(Flavor):
        msg = f"flavor={flavor!r} is not known; choose one of {', '.join(map(repr, get_args(Flavor)))}."
        raise ValueError(msg)
    _check_theta(theta, flavor)
    n_top = _whole("n_top_genes", n_top_genes)
    if min_cells is not None and flavor != "nb":
        msg = f"min_cells={min_cells!r} has no effect with flavor={flavor!r}. Leave it out, or pass flavor='nb'."
        raise ValueError(msg)
    min_cells = MIN_CELLS if min_cells is None else _whole("min_cells", min_cells)
    codes, batches = batch_codes(adata, batch_key)
    _check_supported(get_matrix(adata, layer), flavor, subset=subset)
    if n_top > adata.n_vars:
        msg = f"n_top_genes={n_top} is more than the {adata.n_vars} genes of adata, so all of them are selected."
        warnings.warn(msg, UserWarning, stacklevel=3)
        n_top = adata.n_vars

    start = logg.info("selecting highly variable genes")
    if flavor == "nb":
        with progress_bar("highly_variable_genes", progress), naming_other_counts(adata):
            matrix = get_matrix(adata, layer)
            check_complete(matrix, matrix_name(layer))
            moments = residual_moments(
                matrix,
                codes,
                len(batches),
                theta=theta,
                min_cells=min_cells,
                check=partial(check_counts, where=matrix_name(layer)),
            )
        if not moments.eligible_bg.any():
            msg = "No batch has two cells with counts, so no gene varies, and the first genes are selected. Leave batch_key= out."
            warnings.warn(msg, UserWarning, stacklevel=3)
        table = _rank(moments.residual_variances_bg, moments.eligible_bg, n_top)
        table.insert(0, "variances", moments.variances_g)
        table.insert(0, "means", moments.means_g)
        if batch_key is None:
            table = table.drop(columns=["highly_variable_nbatches", "highly_variable_intersection"])
        adata = own(adata, copy=copy)
        results = Results(
            var={str(name): column.to_numpy() for name, column in table.items()},
            uns={"hvg": {"flavor": "nb", "computed_on": layer or "adata.X"}},
            stale=[("var", name) for name in COLUMNS if name not in table],
        )
        results.write(adata)
        if subset:
            adata._inplace_subset_var(table["highly_variable"].to_numpy())
    else:
        adata = own(adata, copy=copy)
        matrix = get_matrix(adata, layer)
        if flavor in ("seurat", "cell_ranger"):
            _warn_counts(matrix, flavor, matrix_name(layer))
        with progress_bar("highly_variable_genes", progress):
            _delegate(adata, flavor, n_top, layer=layer, batch_key=batch_key, theta=theta, subset=subset)
    logg.info(
        "    finished",
        time=start,
        deep="added\n    'highly_variable', boolean vector (adata.var)\n"
        "    'highly_variable_rank', 'means', 'variances' and related columns (adata.var)",
    )
    return adata if copy else None


def _check_replaceable(adata: AnnData) -> None:
    """Raise if a column exists and ``uns["hvg"]`` does not show that this function or scanpy's wrote it."""
    taken = [name for name in COLUMNS if name in adata.var]
    check_replaceable(
        adata,
        "hvg",
        ours=lambda stored: "flavor" in stored,
        cure="Keep it under another name, adata.var['my_genes'] = adata.var.pop('highly_variable'), or delete it: "
        f"adata.var = adata.var.drop(columns={taken}).",
        var=taken,
    )


def _check_theta(theta: float, flavor: Flavor) -> None:
    if not isinstance(theta, Real) or not theta > 0:
        msg = f"theta={theta!r} was given; a number above 0 is expected (inf for Poisson residuals)."
        raise ValueError(msg)
    if theta != THETA and flavor not in ("nb", "pearson_residuals"):
        msg = f"theta={theta!r} has no effect with flavor={flavor!r}. Leave it out, or pass flavor='nb'."
        raise ValueError(msg)


def _whole(name: str, value: int) -> int:
    try:
        whole = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1:
        msg = f"{name}={value!r} was given; a whole number of at least 1 is expected."
        raise ValueError(msg)
    return whole


def _check_supported(matrix: Any, flavor: Flavor, *, subset: bool) -> None:
    """Raise if this flavour cannot run, before anything is computed."""
    if flavor.startswith("seurat_v3") and find_spec("skmisc") is None:
        msg = (
            f"flavor={flavor!r} needs scikit-misc for its loess fit: pip install scikit-misc. "
            "flavor='nb' selects genes from raw counts without it."
        )
        raise ImportError(msg)
    # scanpy and anndata compute with dask arrays
    if on_disk(matrix) and not is_dask(matrix) and (subset or flavor != "nb"):
        what = "subset=True" if subset else f"flavor={flavor!r}"
        msg = f"{what} needs the matrix in memory, but it is on disk. Pass adata.to_memory()"
        raise ValueError(msg + ("." if subset else ", or flavor='nb', which reads the file in blocks."))


def _rank(residual_variances_bg: np.ndarray, eligible_bg: np.ndarray, n_top: int) -> pd.DataFrame:
    """Rank genes within each batch, then by the number of batches that select them and their median rank there.

    This is the method of scanpy, except that genes without expression in a batch are not ranked in it.
    """
    n_batches, n_genes = residual_variances_bg.shape
    rank_bg = np.full((n_batches, n_genes), np.nan, dtype=np.float32)
    for rank_g, var_g, eligible_g in zip(rank_bg, residual_variances_bg, eligible_bg, strict=True):
        top = np.lexsort((-var_g, ~eligible_g))[: min(n_top, int(eligible_g.sum()))]
        rank_g[top] = np.arange(top.size)
    nbatches = np.isfinite(rank_bg).sum(axis=0)
    ranked = nbatches > 0
    rank = np.full(n_genes, np.nan, dtype=np.float32)
    rank[ranked] = np.nanmedian(rank_bg[:, ranked], axis=0)

    expressed = eligible_bg.any(axis=0)
    best_first = np.lexsort((~expressed, rank, -nbatches))
    selected = np.zeros(n_genes, dtype=bool)
    selected[best_first[:n_top]] = True
    return pd.DataFrame(
        {
            "residual_variances": residual_variances_bg.mean(axis=0),
            "highly_variable_rank": rank,
            "highly_variable_nbatches": nbatches.astype(np.int64),
            "highly_variable_intersection": nbatches == n_batches,
            "highly_variable": selected,
        }
    )


def _warn_counts(matrix: Any, flavor: Flavor, where: str) -> None:
    _, block = next(row_blocks(matrix))
    if block.data.size and (block.data == np.rint(block.data)).all():
        msg = (
            f"flavor={flavor!r} expects log-normalised values, but {where} contains whole numbers. "
            "Pass the normalised layer with layer=, or use flavor='nb' for counts."
        )
        warnings.warn(msg, UserWarning, stacklevel=4)


def _delegate(
    adata: AnnData,
    flavor: Flavor,
    n_top_genes: int,
    *,
    layer: str | None,
    batch_key: str | None,
    theta: float,
    subset: bool,
) -> None:
    import scanpy as sc

    if flavor == "pearson_residuals":
        sc.experimental.pp.highly_variable_genes(
            adata, theta=theta, n_top_genes=n_top_genes, batch_key=batch_key, layer=layer, flavor=flavor, subset=subset
        )
    else:
        sc.pp.highly_variable_genes(
            adata, layer=layer, n_top_genes=n_top_genes, batch_key=batch_key, flavor=flavor, subset=subset
        )
