"""``vx.tl.fit_prior``: learn the prior of a fitted model."""

from __future__ import annotations

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY, Keys
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress.bridge.fits.find_fit import Model
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.results import announce_replaced, check_free, own
from vxpress.bridge.fits.stored_cells import StoredCells
from vxpress.bridge.health.learn_prior import PriorName, check_prior, learn_prior
from vxpress.bridge.health.new_prior import report, results_of_refusal, results_with_prior, task_of
from vxpress.bridge.read.adata import check_adata
from vxpress.bridge.read.prepare import resolve_device


@entry
@takes_mudata("cells")
def fit_prior(
    adata: AnnData | MuData,
    prior: PriorName = "flow",
    model: Model = None,
    *,
    modality: str | None = None,
    condition_key: str | None = None,
    n_components: int | None = None,
    max_steps: int | None = None,
    key: str = DEFAULT_KEY,
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    device: str | torch.device = "auto",
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | MuData | None:
    r"""Learn the prior of a fitted model from its cells: p(z), or p(z | condition).

    A variational autoencoder is trained as if the latent states of cells were distributed as :math:`N(0, I)`. They are
    not: a draw from :math:`N(0, I)` may be unlike any cell. This function fits a density to the actual distribution of
    the cells, the mean of their posteriors :math:`q(z \mid x)` (a second stage: :cite:t:`Dai2019`), by maximum
    likelihood on fresh draws of the training cells. Encoder, decoder and posteriors stay exactly as they are. What
    changes is :func:`log_likelihood`, every score that depends on it, and cells drawn from the prior.

    In a fit with optional covariates, the prior is learned from ``obsm["X_vae"]``, where their effects are removed.
    ``log_likelihood(keep=True)`` uses it too, although latent states that keep these effects are distributed differently.

    The new prior is kept only if the mean of :math:`\log p(z)` over draws of the validation cells, which it was not
    fitted to, rises by more than its standard error. Otherwise the fit stays as it was and a warning is raised.

    Parameters
    ----------
    adata
        The cells of the fit, or some of them, with their posteriors and split as :func:`fit_vae` wrote them. Counts are
        not read.
    prior
        ``"flow"`` (a neural spline flow), ``"mixture"`` (of Gaussians), ``"vamp"`` (a mixture of the posteriors of
        cells chosen by k-means, widened), ``"diffusion"``, ``"flow_matching"``, ``"label_mixture"`` (Gaussians of its
        own for each condition, of which cells without one may be of any), or ``"normal"``, which restores
        :math:`N(0, I)`.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    modality
        If ``adata`` is a MuData, the modality to use with a fit of one modality; results are written into it. With a joint
        fit, all modalities are used, and results are written into the MuData.
    condition_key
        Column of ``obs`` with labels. One prior is learned for each label, :math:`p(z \mid c)`. The labels need not be
        known to the fit. Cells without a label, with a missing value or the ``unlabeled_category`` of the fit, get a
        condition of their own, which has no name. Where no condition is
        given, as in :func:`log_likelihood`, the prior is the mixture :math:`\sum_c \pi_c p(z \mid c)` with the shares
        of the training cells.
    n_components
        Components of ``"mixture"`` and ``"vamp"``; by default as many as the number of cells supports, up to 50, or 500
        for ``"vamp"``.
    max_steps
        Gradient steps of 512 cells; by default some hundreds to thousands, depending on the kind of prior. The state
        that is best for a tenth of the training cells is kept, so more steps do not give a worse fit.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    key_added
        Name under which the fit with its new prior is written; by default the name of the fit, whose prior is replaced.
    rng
        Seed, or a numpy generator.
    device
        ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields:

    ``adata.uns["vae"]``
        The fit with its new prior. ``uns["vae"]["prior"]`` holds

        - ``kind``;
        - ``log_prob_before`` and ``log_prob_after``, the means of log p(z) over validation cells, in nats;
        - ``gain``, their difference, and ``gain_se``, its standard error over cells;
        - ``kl``, the mean divergence of the posteriors from the new prior, and ``kl_se``, the standard error of its
          sampling;
        - ``n_cells`` and ``n_draws``, on which these values are based;
        - ``n_steps`` and ``best_step``;
        - with ``condition_key``, that column, ``categories`` and ``unlabelled``.

        ``uns["vae"]["diagnostics"]`` is computed again. Its ``elbo``, ``amortisation_gap`` and ``inference_gap`` are
        removed; :func:`diagnose` recomputes them from counts. The other values that need counts are those of the prior
        that the networks were trained with. If the new prior is not kept, its record is written to
        ``uns["vae"]["prior"]["refused"]`` and nothing else changes.
    ``adata.obsm["k"]``, ``adata.obsm["k_var"]``, ``adata.obs["k_split"]``, ``adata.obs["k_library"]``
        With ``key_added="k"``: the posteriors, split and size factors of the fit, so that it can be used under its new
        name.

    Raises
    ------
    KeyError
        If there is no such fit, posterior or column, or no split because the cells are not those of the fit.
    ValueError
        If too few cells are left to learn from or to evaluate on, no training cell has a label, or a name is taken.

    See Also
    --------
    vxpress.tl.fit_vae : ``prior=`` learns it together with the rest.
    vxpress.tl.log_likelihood : measure the effect of the new prior on the likelihood.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=20, denoised=False)
    >>> vx.tl.fit_prior(adata, "mixture", condition_key="bulk_labels")
    >>> bool(adata.uns["vae"]["prior"]["gain"] > 0)
    True
    """
    check_adata(adata, copy=copy)
    check_prior(prior)
    if n_components is not None:
        check_range("n_components", n_components, 1, 100_000, integer=True)
    if max_steps is not None:
        check_range("max_steps", max_steps, 1, 10_000_000, integer=True)
    stored = StoredCells.find(adata, model, key)
    to = Keys.of(key) if key_added is None else Keys.of(key_added, "key_added")
    if to != stored.keys:
        fit = stored.fit
        config = fit.params.model
        check_free(
            adata,
            to,
            config.blocks,
            several=bool(fit.members),
            kept=bool(config.optional),
            perturbed=bool(config.n_perturbations),
        )
    task = task_of(adata, stored, condition_key)
    torch_device = resolve_device(device)
    seed = int(seed_of(rng).integers(2**62))
    start = logg.info(f"fitting a prior ({prior}) to {len(task.train_n)} cells")
    with progress_bar("fit_prior", progress):
        fit, record, found = learn_prior(
            stored.fit, task, prior, n_components=n_components, n_steps=max_steps, device=torch_device, seed=seed
        )
        if found.better:
            results = results_with_prior(adata, stored, fit, task, record=record, to=to)
        else:
            results = results_of_refusal(adata, stored, record)
    report(prior, found)
    adata = own(adata, copy=copy)
    if found.better and to != stored.keys:
        announce_replaced(adata, to)
    results.write(adata)
    logg.info("    finished", time=start, deep=results.describe())
    return adata if copy else None
