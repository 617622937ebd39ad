"""``vx.tl.fit_vae``: fit a model to raw counts in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from anndata import AnnData
from scanpy import logging as logg

from vxpress._entry import entry
from vxpress._keys import Keys
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._unset import UNSET, Unset
from vxpress.bridge.fits.fit_arguments import (
    Dispersion,
    LikelihoodName,
    ObjectiveName,
    Preset,
    PriorName,
    check_arguments,
)
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.fits.processes import in_all_processes
from vxpress.bridge.fits.results import check_free
from vxpress.bridge.fitting import FitOptions, fit
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata("makes")
def fit_vae(
    adata: AnnData | MuData,
    batch_key: str | None = None,
    *,
    modality: str | None = None,
    modalities: Mapping[str, str] | Sequence[str] | None = None,
    layer: str | None = None,
    mask_var: str | np.ndarray | Unset | None = UNSET,
    categorical_covariate_keys: Sequence[str] = (),
    continuous_covariate_keys: Sequence[str] = (),
    optional_covariate_keys: Sequence[str] = (),
    panel_key: str | None = None,
    labels_key: str | None = None,
    unlabeled_category: str | None = None,
    perturbation_key: str | None = None,
    dose_key: str | None = None,
    control: str | None = None,
    library: str = "observed",
    likelihood: LikelihoodName | Literal["auto"] | None = None,
    dispersion: Dispersion = "gene",
    n_latent: int | None = None,
    n_hidden: int | None = None,
    n_layers: int | None = None,
    prior: PriorName | None = None,
    objective: ObjectiveName | None = None,
    beta: float | None = None,
    kl_warmup: float | None = None,
    free_bits: float | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    validation_fraction: float = 0.1,
    early_stopping: bool | None = None,
    preset: Preset | None = None,
    options: FitOptions | None = None,
    cure: bool = False,
    n_fits: int = 1,
    denoised: bool | None = None,
    target_sum: float = 1e4,
    device: str | torch.device = "auto",
    n_threads: int | None = None,
    rng: int | np.random.Generator | None = 0,
    split_rng: int | np.random.Generator | None = 0,
    key_added: str | None = None,
    progress: bool | None = None,
    checkpoint_dir: str | Path | None = None,
    checkpoint_minutes: float = 10.0,
    resume: bool | Literal["auto"] = False,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Fit a conditional variational autoencoder to raw counts.

    The model gives each cell a position in a latent space of a few dimensions, from which a neural network decodes the
    distribution of the cell's counts (Lopez et al. 2018). The decoder also receives batch and other covariates, so the
    latent space need not represent them. Continue with ``sc.pp.neighbors(adata, use_rep="X_vae")``. With scanpy's
    verbosity "info" (``sc.settings.verbosity = 2``), the input that was read is logged.

    Parameters
    ----------
    adata
        Annotated data with raw counts, n_obs x n_vars: whole numbers up to 2^24, dense or sparse, in memory,
        backed or opened with :func:`vxpress.io.open_store`. Counts on disk that take more than 256 MB in memory are read in
        blocks during the fit (``source`` in :class:`FitOptions`).
    batch_key
        Column of ``obs`` with the batches to correct for. Categories may be numbers. If they differ no more than random
        groups of cells, the column is left out of the model and changes nothing; see ``screen_covariates`` in
        :class:`FitOptions`. The same holds for ``categorical_covariate_keys``.
    modality
        If ``adata`` is a MuData, a modality to fit alone, for example ``"rna"``. Results are written into it.
    modalities
        If ``adata`` is a MuData, the modalities to fit together, with a likelihood for each:
        ``{"rna": "nb", "protein": "nb_mixture", "atac": "bernoulli"}``. For a list of names, and by default for all
        modalities, the likelihood follows from the name: RNA ("rna", "gex") is ``"nb"``, protein ("prot", "protein",
        "adt") ``"nb_mixture"``, and accessibility ("atac", "peaks") ``"bernoulli"``. Cells may lack modalities. One
        latent space describes all; see the guide. Such a fit has defaults of its own for ``n_hidden`` (256), the minibatch (128
        cells), the learning rate (0.005), thinning (0.3) and the number of epochs (twice as many, up to 65).
    layer
        Layer with the counts; ``None`` reads ``adata.X``.
    mask_var
        Genes to model: a boolean column of ``var`` or a boolean array. By default ``var["highly_variable"]`` if it
        exists, as in :func:`scanpy.pp.pca`; ``None`` models all genes. Genes outside the model get denoised values too.
    categorical_covariate_keys
        Further categorical columns of ``obs`` that the decoder receives. Categories may be numbers.
    continuous_covariate_keys
        Numeric columns of ``obs`` that the decoder receives, standardised.
    optional_covariate_keys
        Categorical columns of ``obs`` whose effect can be removed or kept, for example a condition: the fit gives a
        latent space without it, to find cell types, and one with it, to find responses. Each is a covariate, whether or
        not it is named elsewhere too. In training their categories are hidden from encoder and decoder in half of the
        cells, chosen anew in every step, together if there are several. ``obsm["X_vae"]`` has the effects removed, as
        for any covariate, and ``obsm["X_vae_kept"]`` has them kept. The latter does not depend on the categories.
        :func:`denoise`, :func:`counterfactual`, :func:`log_likelihood` and :func:`vxpress.pp.neighbors` use it with
        ``keep=True``; other functions use the former. Not for a batch that ``dispersion="gene-batch"`` or
        ``library="latent"`` need.
    panel_key
        Column of ``obs`` with the gene panel of each cell, often the batch, if some genes were measured in some cells only.
        ``varm["gene_panels"]``, a :class:`pandas.DataFrame` with one boolean column for each panel, says which genes it
        measured; :func:`vxpress.pp.gene_panels` finds them. A gene that was not measured in a cell is no zero: it has no
        term in the likelihood, and the encoder does not see it. The same holds for genes outside the model. Denoised
        values are shares in the molecules that a cell would have of all genes of all panels, so those of cells of
        different panels compare. With ``library="observed"`` or ``"latent"``, the size factor counts the modelled genes
        that the panel measured and those genes outside the model that all panels measured; ``obs["library_size"]``,
        which also counts genes of some panels, is not read. A column named with ``library=`` has to count the same genes.
    labels_key
        Column of ``obs`` with labels such as cell types, together with one option that uses them:
        ``unlabeled_category=``, or ``dispersion="gene-label"``, which needs the label of every cell. Labels may be
        numbers.
    unlabeled_category
        Category of ``labels_key`` of the cells without a label; missing values count as such too. With it, the fit
        learns the labels after the training of the networks, which stay those of a fit without labels: a classifier of
        the latent position and the expression of a cell, checked on cells that were held out from it, for
        :func:`annotate`; and a prior of z with components for each label, from which :func:`generate` draws cells of a
        label. The prior is kept if it describes held-out cells better than :math:`N(0, I)`, and not learned with
        ``prior=``. The category need not occur.
    perturbation_key
        Column of ``obs`` with the perturbation of each cell, such as a gene or a drug. ``"A+B"`` is the combination of A
        and B; the name of the control inside it (``"A+ctrl"``) counts as nothing. Each single perturbation gets an
        embedding, a vector in the latent space, and an effect on each gene in the output layer. The effects of a
        combination add up, so that combinations that were never observed can be predicted from others with the same
        perturbations (Lotfollahi et al. 2023). ``obsm["X_vae"]`` has the effects removed. See
        :func:`predict_perturbation` and :func:`dose_response`.
    dose_key
        Column of ``obs`` with the dose of each cell: one number, which holds for all perturbations of a combination, or
        text with one for each, ``"0.5+1"``. The strength of an effect is then a Hill function of the dose, which is 0 at
        0 and 1 at the highest dose of the perturbation. Doses of control cells are not read.
    control
        Category of ``perturbation_key`` of the unperturbed cells; required with it.
    library
        Size factor of a cell (with ``panel_key``, see there). ``"observed"``: molecules per cell, from ``obs["library_size"]`` if it exists (see
        :func:`vxpress.pp.library_size`), which may include genes outside ``adata``, else the sum over the genes
        present. ``"latent"``: log-normal, inferred. Any other string: a column of ``obs``; if it does not hold molecule
        counts, it is rescaled to the mean library.
    likelihood
        Distribution of the counts: ``"nb"`` (default; UMI counts need no extra zeros), ``"zinb"``, ``"poisson"``,
        ``"gaussian"`` (of log1p(1e4 x / l)), ``"bernoulli"`` (of detection, x > 0), or, for counts of surface proteins,
        ``"nb_mixture"`` (a background and a foreground component). ``"auto"`` fits ``"nb"`` and
        ``"zinb"`` from the same seeds and keeps ``"zinb"`` only if it describes held-out cells clearly better, as
        judged by :func:`compare`. It takes twice the time, plus 20 seconds per 1,000 held-out cells and 2,000 genes for
        each distribution (1,000 cells at most). With ``cure=True``, the ``"nb"`` fit is repaired and both are fitted
        with the resulting settings.
    dispersion
        What the dispersion of the likelihood depends on: ``"gene"``, ``"gene-batch"``, ``"gene-label"``,
        ``"gene-cell"``.
    n_latent
        Dimensions of the latent space; 20 by default, because dimensions that the data do not need stay empty, while
        missing ones merge cells that differ. 10 with ``preset="scvi"``. By default never more than the modelled genes.
    n_hidden
        Units of each hidden layer; 128 by default, and 64 with ``preset="integration"``.
    n_layers
        Hidden layers of encoder and decoder each; 1 by default, because deeper networks are no better on data of this
        size (Svensson 2020).
    prior
        Prior distribution of the latent state of a cell: ``"normal"`` (default), ``"mixture"``, ``"vamp"``, ``"flow"``,
        ``"diffusion"`` or ``"flow_matching"``. It is learned together with the rest; :func:`fit_prior` learns one
        afterwards.
    objective
        Objective that is maximised. ``"elbo"`` (default) is the evidence lower bound. The other two use several samples
        per cell (``FitOptions(n_samples=)``) and the tighter importance-weighted bound: ``"iwae"`` with plain gradients
        (Burda et al. 2016), ``"dreg"`` with doubly reparameterised ones (Tucker et al. 2019), whose encoder gradients
        stay useful with many samples.
    beta
        Final weight of the divergence from the prior; 1 by default, which gives the evidence lower bound, and 1.5 with
        ``preset="likelihood"`` or ``"integration"``. Values above 1 discard detail, down to an empty latent space.
        Values below 1 separate cells better, but draws from the prior resemble cells less. With ``"iwae"`` and ``"dreg"``, it multiplies log p(z) - log q(z|x) in the importance weights.
    kl_warmup
        Share of all steps over which that weight rises from 0 to ``beta``; 0.3 by default. With ``preset="scvi"``, a
        number of epochs. See ``FitOptions(kl_schedule=)`` for other schedules.
    free_bits
        Nats per latent dimension below which the divergence is not reduced; 0 by default. Values from 0.02 to 0.5 keep
        dimensions in use that the prior would empty; see ``FitOptions(free_bits_form=)``. Epochs are then compared by
        the objective with this floor.
    max_epochs
        Passes over the training cells. The default corresponds to 120,000 visits of cells for up to 5,000 cells,
        growing with the square root of the number of cells, and at most 65 epochs: more would overfit small data.
    batch_size
        Cells per step; by default 512, or 256 with fewer than 1,500 training cells, or 128 with fewer than 500 or with
        ``preset="scvi"``. The default learning rate depends on it, see :class:`FitOptions`.
    validation_fraction
        Share of the cells held out to choose the best state and to check the fit. With 0, all cells are used for
        training and the fit is not checked on held-out cells. The share is taken from every batch, and from every other
        category within it; all cells of a category with fewer than 1 / ``validation_fraction`` cells are used for
        training.
    early_stopping
        Whether to stop when the validation objective no longer improves; by default yes.
    preset
        ``"scvi"`` reproduces the defaults of scvi-tools for comparison (its KL weight rises over 400 epochs and may end
        below 1). ``"likelihood"`` sets ``beta=1.5``: most data sets are described better.
        ``"integration"`` also passes the covariates to the encoder and has half as many hidden units: batches mix more on
        most data sets. New batches can then move in the latent space (``encode(fine_tune=True)``).
    options
        Further settings, see :class:`FitOptions`.
    cure
        Whether to refit with adjusted settings if the fit fails its checks (under-trained, collapsed, overfitted, prior
        gap). One setting is changed at a time. Known causes come first: ``beta`` above 1 is set to 1, and a missing
        warm-up to the default. The next changes depend on the verdict: a longer warm-up, free bits, a decoder that
        receives z in every layer, more steps of the encoder, fewer dimensions, a smaller network, more dropout, a
        learned prior. A change is kept if the importance-weighted likelihood of held-out cells does not fall. The
        search ends as soon as the fit is healthy; a healthy fit is not changed. Each attempt takes the time of a fit
        and is recorded in ``uns["vae"]["diagnostics"]["cure"]``, which ``pandas.DataFrame`` turns into a table.
    n_fits
        Number of models to fit to the same cells, with the same settings and held-out cells but other seeds; at most
        ``n_fits`` times the time of a fit. A single fit places cells partly by chance, so that another seed gives other
        neighbours and clusters. With 3 fits, ``obsm["X_vae_ensemble"]`` holds the posterior means of all of them side
        by side, on which seeds agree better; pass it to ``sc.pp.neighbors(adata, use_rep="X_vae_ensemble")``
        (:func:`vxpress.pp.neighbors` uses it by itself). The first model, the same as with ``n_fits=1``, is the one of
        all other results and calls; the further ones are used by :func:`encode`. ``cure`` and ``likelihood="auto"``
        decide on the first, and the others follow. If Ctrl-C interrupts a further fit, the complete ones are kept.
    denoised
        Whether to write the dense layer of denoised expression. ``None`` writes it up to a size of 1 GB. Above,
        the layer is left out and a warning is raised.
    target_sum
        Sum that denoised expression is scaled to, per cell and over all genes that the size factor counts. If ``adata``
        holds only some of these genes, as in :func:`vxpress.datasets.pbmc68k_reduced`, the genes present sum to less.
    device
        ``"auto"`` uses CUDA if it is available, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    n_threads
        Number of threads on a processor, at most 64, which changes no bits of the results and is not stored. ``None`` uses
        the environment variable ``VXPRESS_NUM_THREADS``, which holds for all functions. Without it, the number is that of
        torch (``torch.get_num_threads()``), or that of the processors which are free if it is lower: it never exceeds those
        that the process is bound to or its container may use, and is lower while other programs keep them busy. A number
        given here or by the environment is used whatever the load is.
    rng
        Seed of order, initialisation, dropout and noise, or a numpy generator; ``None`` uses a new seed. The same seed
        gives the same bits on the same processor with the same versions, with any number of threads.
    split_rng
        Seed of the held-out cells, separate from ``rng`` so that fits with different seeds hold out the same cells.
    key_added
        Name of the fit, under which the results are written; see below. An earlier fit of that name is replaced and a
        warning is raised; anything else of that name is not replaced.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.
    checkpoint_dir
        Folder for checkpoints, one for each fit; it is created if needed. The state of the training is stored there every
        ``checkpoint_minutes``, at its end, and when the process is asked to end (SIGTERM, as schedulers send it, or SIGHUP):
        the call then raises :class:`Stopped`, which ends a script with status 143. ``None`` stores nothing. The files may
        be removed once the results are stored.
    checkpoint_minutes
        Minutes between two checkpoints; 10 by default, the most that is lost if the process is killed. One is written in
        less than a second for most models.
    resume
        Whether to continue from ``checkpoint_dir``. ``True`` needs a checkpoint there; ``"auto"`` begins if there is none, so
        that a scheduler can start the same script again. Data, settings and seeds have to be the same. On a processor the
        result has the bits of a fit that was never stopped. ``False`` never replaces the checkpoints of an earlier fit.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    Returns ``None`` if ``copy=False``, else returns an ``AnnData`` object. Sets the following fields (with
    ``key_added="k"``: ``obsm["k"]``, ``obsm["k_var"]``, ``obsm["k_ensemble"]``, ``obsm["k_ensemble_var"]``, ``layers["k_normalized"]``, ``obs["k_split"]``,
    ``obs["k_library"]``, ``varm["k_loadings"]``, ``uns["k"]``):

    ``adata.obsm["X_vae"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Posterior mean of each cell, n_obs x n_latent.
    ``adata.obsm["X_vae_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Posterior variance, same shape.
    ``adata.obsm["X_vae_ensemble"]``, ``adata.obsm["X_vae_ensemble_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        With ``n_fits`` above 1: posterior means and variances of all models side by side, n_obs x (n_fits x n_latent).
        The first ``n_latent`` columns are those of ``obsm["X_vae"]``.
    ``adata.obsm["X_vae_kept"]``, ``adata.obsm["X_vae_kept_var"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Only with ``optional_covariate_keys=``: the same with the effects of these covariates kept (``obsm["k_kept"]``
        and ``obsm["k_kept_var"]`` with ``key_added="k"``).
    ``adata.obsm["X_vae_perturbed"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Only with ``perturbation_key=``: ``obsm["X_vae"]`` plus the effects of the perturbations of each cell
        (``obsm["k_perturbed"]`` with ``key_added="k"``). The posterior variance is the same.
    ``adata.layers["vae_normalized"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Denoised expression of every gene, n_obs x n_vars: the expected share of a cell's molecules, averaged over the
        batches of the fit, times ``target_sum``; not log-transformed (``likelihood="gaussian"``: the expected log
        value).
    ``mdata.obsm["X_vae"]``, ``mdata.mod["protein"].layers["vae_normalized"]`` and others
        With ``modalities``, results of cells belong to the MuData, and each modality gets a layer of denoised values. For a
        likelihood with a background (``"nb_mixture"``) these are the expected counts of the foreground, without
        background and not scaled.
    ``adata.obs["vae_split"]`` : categorical
        ``"train"``, ``"validation"``, or ``"query"`` for cells without counts, which are left out.
    ``adata.obs["vae_library"]`` : ``float64``
        Size factor used.
    ``adata.varm["X_vae_loadings"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Only with ``options=FitOptions(decoder="linear")``: the slope of the logit of a gene's share
        (``likelihood="gaussian"``: of its log value) along each latent dimension, n_vars x n_latent; NaN for genes that
        are not modelled. Shares sum to one, so only differences between genes are meaningful, not the level.
    ``adata.uns["vae"]``
        The fit:

        - ``params``, the settings. ``params["dispersion_gain"]`` is the gain from refitting the dispersions after
          training, in nats of the importance-weighted bound per validation cell (0 if they were not refitted, or
          nothing was gained);
        - ``history``, the values of each epoch, from before that refit;
        - ``diagnostics``, with a ``verdict``, and with categorical covariates ``covariates``, what each is worth; see
          :func:`diagnose`;
        - ``covariates``, ``genes`` and ``weights``, which are needed to use the model again;
        - with ``n_fits`` above 1, ``ensemble``: settings and weights of the further models;
        - with ``likelihood="auto"``, ``choice``: the selected ``likelihood``, the mean ``log_likelihood`` of each of
          the ``candidates`` on ``n_cells`` held-out cells with ``n_samples`` importance samples and with fewer, and
          their ``difference`` (zinb - nb) with its 95 % interval and the ``gap`` that it must exceed;
        - with a learned prior, ``prior``: its ``kind``, and ``kl``, the mean divergence of held-out posteriors from it,
          with ``kl_se``, the standard error of its sampling.

    Raises
    ------
    ValueError
        If the matrix does not hold counts, a covariate has missing values, an optional one is not categorical or has a
        single category, a setting is out of range, a name is taken by something else, or the device is not available.
        Also if a checkpoint is damaged, or belongs to other data or settings.
    KeyError
        If a named column or layer does not exist.
    TypeError
        If ``adata`` is neither an AnnData nor a MuData.
    OSError
        If ``checkpoint_dir`` cannot be written to (``FileExistsError``: holds checkpoints without ``resume``;
        ``FileNotFoundError``: holds none with ``resume=True``). Nothing has been read by then.
    Stopped
        With ``checkpoint_dir``, if SIGTERM or SIGHUP arrived.
    TrainingError
        If most steps of an epoch are not finite; the message names the likely cells.

    See Also
    --------
    vxpress.tl.encode : encode new cells with the fitted model.
    vxpress.tl.compare : rank fits by held-out likelihood.
    vxpress.tl.denoise : denoised expression, in chunks.
    vxpress.pl.kl : plot the divergence of each latent dimension.

    References
    ----------
    Lopez et al., Deep generative modeling for single-cell transcriptomics, Nature Methods 2018.
    Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.pbmc68k_reduced()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> adata.obsm["X_vae"].shape
    (700, 20)

    The cell cycle removed and kept by the same fit:

    >>> vx.tl.fit_vae(adata, max_epochs=5, optional_covariate_keys=["phase"], key_added="dial")
    >>> adata.obsm["dial"].shape, adata.obsm["dial_kept"].shape
    ((700, 20), (700, 20))
    """
    given = dict(locals())
    check_adata(adata, copy=copy)
    keys = Keys.of(key_added, "key_added")
    check_free(adata, keys)
    checked = check_arguments(given)
    with in_all_processes(checked.device, checked.n_threads) as world:
        start = logg.info("fitting a variational autoencoder")
        with progress_bar("fit_vae", progress if world.first else False):
            target, results = fit(adata, checked, keys, copy=copy)
        logg.info("    finished", time=start, deep=results.describe())
    return target if copy else None
