"""``vx.tl.diagnose``: is the latent space sound?"""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._progress import progress_bar
from vxpress._unset import UNSET, Unset
from vxpress.bridge.diagnosis import Decoding
from vxpress.bridge.diagnosis import diagnose as diagnose_posterior
from vxpress.bridge.find import Model
from vxpress.bridge.predictive import read_scored
from vxpress.bridge.prepare import seed_of
from vxpress.bridge.store import Results, check_adata, own
from vxpress.bridge.stored import StoredCells, stored_split
from vxpress.core.config import check_range
from vxpress.core.counts import Cells


@entry
def diagnose(
    adata: AnnData,
    model: Model = None,
    *,
    key: str = DEFAULT_KEY,
    gaps: bool | None = None,
    n_cells: int = 100,
    layer: str | Unset | None = UNSET,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Judge the latent space of the cells at hand: collapse, overfitting, prior gap, unused dimensions.

    :func:`fit_vae` does this for its own cells, with fewer looked at one by one; call it for the gaps, after :func:`encode`,
    or on a subset of cells.

    Parameters
    ----------
    adata
        Cells with a stored posterior.
    model
        Where the fit is: an AnnData, a file, or ``None`` for ``adata`` itself.
    key
        Name of the fit.
    gaps
        Whether to compute what needs counts. ``None`` does where ``adata`` holds them, and otherwise keeps what the fit
        knows from its own cells; ``True`` raises where there are none.
    n_cells
        Cells, held-out ones where there are any, whose own posterior is sought for the gaps: about a second per hundred.
    layer
        Layer that holds the counts; left out, the one that the fit read.
    rng
        Seed of these cells and of the noise, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's verbosity
        is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following field, and logs the verdict:

    ``adata.uns["vae"]["diagnostics"]``
        All in nats per cell unless said otherwise, of held-out cells where there are any:

        ``verdict``
            A sentence that begins with healthy, unused dimensions, prior gap, overfitted, collapsed or under-trained, with
            the cure. Do not use a collapsed or under-trained fit. Of an overfitted one clusters are fine and what is said of
            new cells is weaker; a prior gap matters for cells drawn from the prior only.
        ``kl_per_dim`` (n_latent,), ``kl``, ``kl_se``
            Divergence of the posterior from the prior, which the dimensions sum to. Under a prior other than N(0, I) a dimension
            has no divergence of its own, and ``kl_per_dim`` is that from the normal distribution with the mean and variance of the
            aggregate posterior in that dimension; ``kl`` is then sampled, with the standard error ``kl_se``, else 0.
        ``active`` (n_latent,), ``active_units``, ``active_units_kl``
            Dimensions in which the posterior mean varies by more than 0.01 over cells (Burda et al. 2016), and the number
            whose ``kl_per_dim`` exceeds 0.01.
        ``mutual_information``, ``mutual_information_cap``
            Information of z about the cell (Hoffman & Johnson 2016), which no estimate shows beyond the log of the number of cells.
        ``prior_gap_per_dim``, ``prior_gap_per_dim_low``
            Divergence of the aggregate posterior from the prior, per dimension, and its lower 95 % bound; see
            :func:`vxpress.metrics.prior_gap`.
        ``decoder_response`` (n_latent,)
            Share of a cell's molecules that go to other genes as the dimension moves from 2 sd below its mean to 2 sd above.
        ``generalisation_gap``, ``generalisation_gap_share``, ``generalisation_gap_low``
            By how much held-out cells are described worse than training cells of like depth; as a share of the held-out
            ELBO; and the lower 95 % bound of that share.
        ``elbo``, ``amortisation_gap``, ``inference_gap``, ``kl_encoder``, ``kl_refined``, ``n_probed``
            Of ``n_probed`` cells: their ELBO; by how much it rises as the posterior of every cell is improved by itself, 100
            steps of Adam with the decoder held fixed (Cremer et al. 2018); IWAE with 100 samples less ELBO; and the divergence
            from the prior of the encoder's posterior and of the improved one.

    Raises
    ------
    KeyError
        If there is no such fit or posterior.
    ValueError
        If ``gaps=True`` and the matrix does not hold the counts of the fit.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance weighted autoencoders, ICLR 2016.
    Hoffman & Johnson, ELBO surgery, NIPS workshop 2016.
    Cremer, Li & Duvenaud, Inference suboptimality in variational autoencoders, ICML 2018.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> vx.tl.diagnose(adata, n_cells=20)
    >>> found = adata.uns["vae"]["diagnostics"]
    >>> found["kl_per_dim"].shape, found["decoder_response"].shape
    ((10,), (10,))
    >>> bool(found["inference_gap"] > 0)
    True
    """
    check_adata(adata, copy=copy)
    check_range("n_cells", n_cells, 1, 1_000_000, integer=True)
    if not (gaps is None or isinstance(gaps, bool)):
        msg = f"gaps={gaps!r} was given; True, False or None is expected."
        raise ValueError(msg)
    seed = int(seed_of(rng).integers(2**31))
    stored = StoredCells.find(adata, model, key)
    fit, keys = stored.fit, stored.keys
    split_n = stored_split(adata, keys)
    split_n = np.full(adata.n_obs, "", dtype=object) if split_n is None else split_n
    with progress_bar("diagnose", progress):
        cells = _cells(adata, stored, layer, gaps=gaps)
        found = diagnose_posterior(
            stored.mean_nd,
            stored.var_nd,
            split_n == "validation",
            fit.params.train,
            fit.history,
            n_steps=fit.params.n_steps,
            decoding=Decoding(fit.model, stored.covariates, cells, np.flatnonzero(split_n == "train")),
            n_probed=n_cells,
            known=fit.diagnostics,
            seed=seed,
        )
    # what came of a cure is told of the fit, not of these cells
    found |= {name: fit.diagnostics[name] for name in ("cure", "before_cure") if name in fit.diagnostics}
    adata = own(adata, copy=copy)
    Results(uns={keys.uns: fit.to_uns() | {"diagnostics": found}}).write(adata)
    logg.info(str(found["verdict"]))
    return adata if copy else None


def _cells(adata: AnnData, stored: StoredCells, layer: str | Unset | None, *, gaps: bool | None) -> Cells | None:
    """The cells with their counts; None where these are not asked for or not there."""
    if gaps is False:
        return None
    try:
        return read_scored(adata, stored.fit, layer)
    except (ValueError, KeyError) as error:
        if gaps:
            raise
        logg.info(f"    what needs counts is taken from the fit: {error}")
        return None
