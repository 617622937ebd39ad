"""``vx.tl.perturbation_similarity``: which perturbations have similar effects."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys, check_name
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.ask.embedding_similarity import similarity_record
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import Results, check_replaceable, has_params, own
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata()
def perturbation_similarity(
    adata: AnnData | MuData,
    *,
    modality: str | None = None,
    level: float = 0.95,
    n_resamples: int = 100,
    key: str = DEFAULT_KEY,
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Compare the embeddings of all single perturbations of a fit by their cosine, and say how reliable they are.

    The embedding of a perturbation is its shift in the latent space at the highest dose (:func:`fit_vae` with
    ``perturbation_key=``). A perturbation without effect has an embedding too, which points anywhere: its reliability is
    near 0, and its similarity to others means nothing.

    Parameters
    ----------
    adata
        Cells with a stored posterior and the perturbations in ``obs``, those of the fit.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``; its fit has to be one of this modality alone.
    level
        Level of the intervals of each pair.
    n_resamples
        Number of bootstrap resamples of the cells of each condition, and of divisions of the cells into halves.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    key_added
        Name of the result; by default that of the fit followed by ``"_perturbation_similarity"``.
    rng
        Seed of the resamples, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following field:

    ``adata.uns["vae_perturbation_similarity" | key_added]`` : :class:`dict`
        - ``"names"``, the p perturbations, in an order in which similar ones are next to each other (average linkage);
        - ``"similarity"``, their cosines, p x p, and the ends of their intervals over cells, ``"low"`` and ``"high"``;
        - ``"reliability"``, the cosine to expect between the embedding and that of another sample of as many cells, from
          0 to 1, by halves of the cells;
        - ``"size"``, the length of each embedding; latent positions have variances of about 1;
        - ``"params"``.

    Raises
    ------
    KeyError
        If there is no such fit or posterior, or a column of ``obs`` is missing.
    ValueError
        If the fit has no perturbations, or the name is taken by something else.

    See Also
    --------
    vxpress.pl.perturbation_similarity : the matrix as an image.

    Examples
    --------
    >>> import numpy as np, vxpress as vx
    >>> adata = vx.datasets.simulate(400, 60, n_groups=4, rng=0)
    >>> vx.tl.fit_vae(adata, perturbation_key="group", control="group_0", max_epochs=3)
    >>> vx.tl.perturbation_similarity(adata)
    >>> found = adata.uns["vae_perturbation_similarity"]
    >>> bool(np.allclose(np.diag(found["similarity"]), 1))
    True
    """
    check_adata(adata, copy=copy)
    fit = find_fit(adata, None, key)
    table = fit.covariates.perturbations
    if table is None:
        msg = (
            "The fit has no perturbations to compare. Fit with vx.tl.fit_vae(adata, perturbation_key=..., control=...)."
        )
        raise ValueError(msg)
    check_range("level", level, 0.0, 1.0)
    check_range("n_resamples", n_resamples, 2, 1_000_000, integer=True)
    name = f"{Keys.of(key).uns}_perturbation_similarity" if key_added is None else key_added
    check_name("key_added", name)
    check_replaceable(adata, name, ours=lambda stored: has_params(stored, "n_resamples", "level"))
    cells = StoredCells.find(adata, None, key)
    start = logg.info("comparing perturbations")
    with progress_bar("perturbation_similarity", progress):
        found = similarity_record(cells, table.names, level=level, n_resamples=n_resamples, rng=seed_of(rng))
    record = found | {"params": {"key": key, "level": float(level), "n_resamples": int(n_resamples)}}
    adata = own(adata, copy=copy)
    results = Results(uns={name: record})
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
