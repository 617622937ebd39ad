"""``vx.tl.annotate``: labels of cells, with calibrated confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.annotation import Coarse, annotate_query, check_labels, held_out_record
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.query import read_query
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.prepare import resolve_device

UNDECIDED = "Undecided"


@entry
@takes_mudata("cells")
def annotate(
    adata: AnnData | MuData,
    model: Model = None,
    *,
    modality: str | None = None,
    alpha: float = 0.05,
    coarse: Mapping[Any, Any] | str | None = None,
    unknown_category: str = "Unknown",
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    rng: int | np.random.Generator | None = 0,
    device: str | torch.device = "auto",
    key_added: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Annotate cells with the labels of a fit, and find those that have none of them.

    The labels are those of a fit with ``labels_key=`` and ``unlabeled_category=``. The cells may be those of the fit or
    others, also of batches that the fit has not seen and with genes missing, as for :func:`encode`. The reference cells
    are not needed: all that annotation needs is stored in the fit.

    Two classifiers are combined, logistic regressions on the latent position, with its similarity to landmarks among
    all cells of the fit, and on log-normalised expression. Rare labels count more than their share. Penalties and the
    weights of the two, which also set how confident the result is, are chosen on labelled cells that were held out.

    Parameters
    ----------
    adata
        Cells with raw counts of genes of the fit, and with its covariates in ``obs``.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, and results are written into the MuData.
    alpha
        Error rate of the sets of labels and of the test for cells of no known label; see below.
    coarse
        Coarser labels that the labels are nested in: a mapping, ``{"CD4 T": "T", "CD8 T": "T", "B": "B"}``, or a column
        of ``obs`` of ``adata`` or of the AnnData given as ``model``, which also hold the labels. The probability of a
        coarser label is the sum of those of its labels.
    unknown_category
        Name of cells of no known label.
    key
        Name of the fit: the ``key_added`` of the call that made it. A ``.safetensors`` file holds a single fit; ``key``
        is then the beginning of the name of the results.
    layer
        Layer with the counts, or ``None`` for ``adata.X``; by default the layer that the fit read.
    rng
        Seed that breaks ties of ranks, or a numpy generator.
    device
        Where cells are encoded: ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``,
        ``"cuda:1"``.
    key_added
        Name under which the results are written; by default the name of the fit followed by ``"_label"``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.obs["vae_label"]`` : categorical
        The most probable label, or ``unknown_category``. A labelled cell of the fit gets the label that a classifier
        learned without it predicts, so that labels that do not fit their cell can be found.
    ``adata.obs["vae_label_confidence"]`` : ``float32``
        Probability of the most probable label, also of unknown cells, given that the cell has one of the labels.
    ``adata.obs["vae_label_set_size"]`` : ``int64``
        Number of labels in the set of the cell.
    ``adata.obs["vae_label_novelty"]``, ``adata.obs["vae_label_novelty_pval"]`` : ``float64``
        How unusual the cell is for all labels, higher is more unusual, and the p-value of this. NaN for labelled cells
        of the fit and cells without counts.
    ``adata.obs["vae_label_coarse"]``, ``adata.obs["vae_label_coarse_confidence"]``, ``adata.obs["vae_label_nested"]``
        Only with ``coarse=``: the most probable coarser label or ``unknown_category``, its probability, and the finest
        name that holds for all labels in the set: the label if it is the only one, the coarser label if all belong to
        it, else ``"Undecided"``.
    ``adata.obsm["vae_label_prob"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Probabilities of the labels, n_obs x n_labels, in the order of ``uns["vae_label"]["labels"]``.
    ``adata.obsm["vae_label_set"]`` : :class:`numpy.ndarray` (dtype ``bool``)
        Which labels are in the set of each cell, same shape.
    ``adata.uns["vae_label"]``
        ``params``; the ``labels``; their numbers of cells in the fit, ``n_labelled``, and how well these were
        predicted when held out: ``recall``, ``precision`` and ``f1`` per label, ``accuracy``, ``macro_f1`` and
        ``calibration_error`` (:func:`vxpress.metrics.expected_calibration_error`); and ``n_unknown``.

    Raises
    ------
    KeyError
        If there is no such fit, or a column of ``obs`` is missing.
    ValueError
        If the fit has no labels, ``coarse`` does not name a coarser label for each label, or the cells cannot be
        encoded, see :func:`encode`.

    Notes
    -----
    *Sets.* A label is in the set of a cell unless the label's probability is among the lowest share ``alpha`` of the
    probabilities that held-out cells of this label gave it. Of cells of any label, like those of the fit, a share of 1
    - ``alpha`` therefore has its label in its set, whether or not the probabilities are right (conformal prediction
    within labels; Vovk et al. 2005). Labels with fewer than 1 / ``alpha`` - 1 held-out cells are compared with one
    another, or with all cells if that is too few, and keep the rate on average only.

    *Unknown* are cells whose set is empty, and cells with a p-value of at most ``alpha`` for novelty. The score combines
    the distance to the nearest label, less that to all cells, and the share of labelled cells among the neighbours. It
    is ranked among labelled cells of the same most probable label. At most a share of ``alpha`` of the cells of known
    labels is marked by either rule, so at most 2 ``alpha`` in total. Both need other cells for comparison: annotate all
    cells of a query together, because a single cell of an unseen type rarely looks unusual by itself.

    The rates hold for cells like the labelled ones. In a batch that has no labelled cells, they hold as far as it
    resembles those that have some. If some batches of a fit have labels and others have none, whole batches are held
    out. The novelty of cells of batches without labels is compared with that of other cells of their batch, of which
    most are taken to have a known label. If genes are missing, their expression is predicted from the latent position,
    and rates are approximate.

    References
    ----------
    Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, Springer 2005.
    Ding et al., Class-conditional conformal prediction with many classes, NeurIPS 2023.
    Ren et al., A simple fix to Mahalanobis distance for improving near-OOD detection, arXiv 2106.09022.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> reference, query = adata[:500].copy(), adata[500:].copy()
    >>> vx.tl.fit_vae(reference, labels_key="bulk_labels", unlabeled_category="Unknown", max_epochs=20)
    >>> vx.tl.annotate(query, model=reference)
    >>> known = query.obs["vae_label"] != "Unknown"
    >>> right = query.obs["vae_label"].astype(str) == query.obs["bulk_labels"].astype(str)
    >>> bool(right[known].mean() > 0.6)
    True
    """
    check_adata(adata, copy=copy)
    check_range("alpha", alpha, 1e-6, 0.5)
    fit = find_fit(adata, model, key)
    labels = check_labels(fit.labels, unknown_category)
    name = f"{key}_label" if key_added is None else key_added
    check_name("key" if key_added is None else "key_added", name)
    nested = None
    if coarse is not None:
        places = [adata.obs, *([model.obs] if isinstance(model, AnnData) else [])]
        nested = Coarse.of(coarse, labels, places, (unknown_category, UNDECIDED))
    parts = ["confidence", "set_size", "novelty", "novelty_pval"]
    parts += [] if nested is None else ["coarse", "coarse_confidence", "nested"]
    check_replaceable(
        adata,
        name,
        ours=lambda stored: has_params(stored, "alpha", "labels_key"),
        obs=[name, *(f"{name}_{part}" for part in parts)],
        obsm=[f"{name}_prob", f"{name}_set"],
    )
    torch_device, generator = resolve_device(device), seed_of(rng)
    start = logg.info("annotating cells")
    with progress_bar("annotate", progress):
        query = read_query(adata, fit, layer, incomplete=True)
        found = annotate_query(query, labels, torch_device, alpha=alpha, rng=generator)
    best = np.array(labels.names, dtype=object)[found.best_n]
    record = {
        "params": {"alpha": float(alpha), "labels_key": labels.key, "unknown_category": unknown_category},
        "labels": np.array(labels.names, dtype=object),
        "n_unknown": int(found.unknown_n.sum()),
        **held_out_record(labels),
    }
    results = Results(
        obs={
            name: pd.Categorical(
                np.where(found.unknown_n, unknown_category, best), categories=[*labels.names, unknown_category]
            ),
            f"{name}_confidence": found.prob_nc.max(1).astype(np.float32),
            f"{name}_set_size": found.set_nc.sum(1).astype(np.int64),
            f"{name}_novelty": found.score_n,
            f"{name}_novelty_pval": found.pval_n,
        },
        obsm={f"{name}_prob": found.prob_nc.astype(np.float32), f"{name}_set": found.set_nc},
        uns={name: record},
    )
    if nested is None:
        results.stale += [("obs", f"{name}_{part}") for part in ("coarse", "coarse_confidence", "nested")]
    else:
        prob_nk = nested.prob(found.prob_nc)
        above = np.array(nested.names, dtype=object)[prob_nk.argmax(1)]
        results.obs[f"{name}_coarse"] = pd.Categorical(np.where(found.unknown_n, unknown_category, above))
        results.obs[f"{name}_coarse_confidence"] = prob_nk.max(1).astype(np.float32)
        results.obs[f"{name}_nested"] = pd.Categorical(nested.backed_off(found, unknown_category, UNDECIDED))
        record |= {"coarse": np.array([nested.names[i] for i in nested.of_c], dtype=object)}
    adata = own(adata, copy=copy)
    results.write(adata)
    logg.info(
        f"    {record['n_unknown']} of {adata.n_obs} cells are of no known label; held-out labelled cells: accuracy "
        f"{record['accuracy']:.3f}, macro F1 {record['macro_f1']:.3f}"
    )
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
