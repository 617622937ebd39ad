"""``vx.tl.predict_perturbation``: the response of cells to a perturbation under which they were not observed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from vxpress._checks import check_range
from vxpress._entry import entry
from vxpress._keys import DEFAULT_KEY
from vxpress._mudata import MuData
from vxpress._progress import progress_bar
from vxpress._seeds import seed_of
from vxpress._unset import UNSET, Unset
from vxpress.bridge.ask.perturbation.arguments import check_counts, check_target, make_method
from vxpress.bridge.ask.perturbation.cells import PerturbedCells
from vxpress.bridge.ask.perturbation.checking import check as check_method
from vxpress.bridge.ask.perturbation.populations import Populations
from vxpress.bridge.ask.perturbation.prediction import Predictor
from vxpress.bridge.ask.perturbation.refit import Refitter
from vxpress.bridge.ask.perturbation.result import as_anndata, predict, warn
from vxpress.bridge.ask.records import params_of
from vxpress.bridge.fits.find_fit import Model, find_fit
from vxpress.bridge.fits.modalities import takes_mudata
from vxpress.bridge.read.adata import check_adata


@entry
@takes_mudata()
def predict_perturbation(
    adata: AnnData | MuData,
    perturbation_key: str,
    *,
    modality: str | None = None,
    control: Hashable,
    target: Hashable,
    groupby: str | None = None,
    groups: Hashable | Sequence[Hashable] | None = None,
    method: str = "shift",
    method_options: Mapping[str, Any] | None = None,
    anchor: float = 0.5,
    model: Model = None,
    key: str = DEFAULT_KEY,
    layer: str | Unset | None = UNSET,
    check: bool | Literal["refit"] = True,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> AnnData:
    r"""Predict how control cells respond to a perturbation, also in groups that were never treated.

    Every control cell of the wanted groups gives one predicted cell. What changes is learned from the groups that have
    both control and treated cells. The cells need not be paired.

    Methods in the latent space (their fit must not have the perturbation as a covariate, or as an optional one, whose
    effect they keep) move the position of each control cell and decode it there:

    - ``"shift"`` adds the mean of treated cells minus the mean of control cells of the same group, averaged over groups
      :cite:p:`Lotfollahi2019`;
    - ``"bures"`` maps the normal distribution with the moments of the control cells to that with the moments of the
      treated cells, the optimal transport between both in closed form;
    - ``"sinkhorn"`` moves each cell to an average of treated cells by entropic optimal transport :cite:p:`Cuturi2013`,
      also if parts of the populations have no counterpart (``{"unbalanced": 1.0}``);
    - ``"icnn"`` moves cells along the gradient of a convex network :cite:p:`Bunne2023`;
    - ``"flow_matching"`` moves cells along a learned velocity field :cite:p:`Lipman2023,Tong2024`.

    All of them learn from the cells of the group if it has treated cells, otherwise from those of the other groups.

    - ``"counterfactual"`` needs a fit with the perturbation as a covariate, and decodes each control cell under the
      target instead;
    - ``"additive"`` needs a fit with ``perturbation_key=``, and decodes each control cell with the sum of the effects of
      the perturbations in the target, for example of the combination ``"A+B"`` that was never observed. With doses, the
      target has the highest ones of the fit, or those in ``method_options={"dose": "0.5+1"}``.

    The other methods are floors. They change the mean profile of the observed counts, and a model that is no better has
    learned nothing of use:

    - ``"control"`` changes nothing;
    - ``"mean_shift"`` adds the mean change of the other groups;
    - ``"ridge"`` predicts the change from the control profile by a ridge regression over the other groups, whose
      penalty is chosen by leaving one of them out at a time;
    - ``"additive_mean"`` adds, for a combination such as ``"A+B"``, the changes under its single perturbations.

    Profiles and changes are means over cells of :math:`\log(1 + 10^4 x / l)`, with the counts :math:`x` of a cell and its
    size factor :math:`l`. Each group is compared with control cells of the same group.

    What these methods decode is corrected in two ways by what was observed. The decoded change is rescaled by the factor
    that fits the observed changes of treated groups best, each predicted without its treated cells. It is then averaged
    with an anchor, the change if the log fold changes of other groups held in this one, from a ridge regression of log
    fold changes on control profiles.

    Counts are drawn paired with the observed counts of the source cell: the count of a gene is where the observed count
    was in its decoded distribution, in the distribution after the change. A gene whose distribution does not change keeps
    its counts, and errors that the model makes for control and treated cells alike cancel.

    Parameters
    ----------
    adata
        Cells with a stored posterior (:func:`fit_vae` and :func:`encode` write it) and counts: control cells of the
        groups to predict, and treated cells to learn from. It is not changed.
    perturbation_key
        Column of ``obs`` with the perturbation of each cell.
    modality
        If ``adata`` is a MuData, the modality to use, for example ``"rna"``; its fit has to be one of this modality alone.
    control, target
        Perturbation of the source cells, and perturbation to predict. Numbers may be given as numbers.
    groupby
        Column of ``obs`` with groups of cells, for example cell types or patients. Without it, all cells are one group.
    groups
        Groups to predict, by name; by default all with control cells. For a group with treated cells, methods in the
        latent space learn from these.
    method
        Name of the method.
    method_options
        Options of the method by name, for example ``{"local": "groups"}`` for ``"shift"``.
    anchor
        Weight of the anchor, from 0 (as decoded) to 1 (log fold changes of other groups alone). The average of both had
        a higher correlation with the observed change than either on every data set tried. Floors have no anchor. For
        ``"additive"`` it is the sum of the changes by the parts of the target, which are estimated by least squares from
        all conditions that share a part, and its weight is larger for genes whose change is large compared with its
        error.
    model
        Where the fit is: an AnnData, an ``.h5ad``, zarr or ``.safetensors`` file, or ``None`` for ``adata`` itself.
    key
        Name of the fit: the ``key_added`` of the call that made it.
    layer
        Layer with the counts; by default that of the fit, and ``None`` reads ``adata.X``.
    check
        Whether to predict each group with at least 10 control and 10 treated cells (up to 20 groups, and 3
        with ``"sinkhorn"``, ``"icnn"`` and ``"flow_matching"``, which take seconds for each) without its
        treated cells, and to compare with the floors. With ``True``, the fit is not repeated: its decoder has seen
        these cells, so the scores of methods in the latent space are too good, a little for maps of the latent space and
        much for ``"counterfactual"`` and ``"additive"``. ``"refit"`` repeats the fit for each of these groups without
        its treated cells, which takes as long as so many fits, and says what to expect for a new group. With ``False``
        nothing is left out, and the decoded change is not rescaled.
    rng
        Seed of the counts and of methods that draw random numbers, or a numpy generator.
    progress
        Whether to show a progress bar. ``None`` shows one once the call has taken five seconds, unless scanpy's
        verbosity is 0; ``True`` shows it at once, ``False`` never.

    Returns
    -------
    An ``AnnData`` object with one row per source cell, under its name, and the modelled genes of the fit:

    ``X`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Counts of the predicted cells, paired with those of the source cells.
    ``layers["mean"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Expected counts at the size factor of the source cell.
    ``layers["control"]`` : :class:`scipy.sparse.csr_matrix` (dtype ``float32``)
        Observed counts of the source cells.
    ``obs``
        ``"source_cell"``, the columns of groups and covariates, the perturbation (``target``), ``"library_size"``, the
        size factor, and ``"support"`` from 0 to 1: the share of treated cells that are as far from other treated cells
        as the predicted position is from them, or farther.
    ``obsm["X_vae"]``, ``obsm["X_vae_control"]`` : :class:`numpy.ndarray` (dtype ``float32``)
        Positions of predicted cells and of source cells; not for floors.
    ``uns["perturbation"]``
        ``"params"``; ``"groups"`` and ``"genes"``, the predicted groups and genes; ``"change"``, the predicted change
        of their mean profiles, groups x genes, which has no sampling noise, and ``"molecules"``, those of the predicted
        cells of each group; ``"floors"``, the change that each floor predicts; with ``check`` also ``"checked"``, a
        table of scores of the method and of the floors on groups that were left out (correlation, and weighted
        coefficient of determination, of the change), and ``"verdict"``, a sentence.

    Raises
    ------
    KeyError
        If there is no such fit, posterior, size factor, column or layer.
    ValueError
        If a perturbation or group is unknown, a named group has no control cells, there are no treated cells to learn
        from, a column has missing values, the counts are not counts, the method or one of its options is unknown, or
        the fit does not suit the method.

    See Also
    --------
    counterfactual : decode all cells under another value of a covariate.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(600, 100, n_groups=3, n_batches=2, rng=0)
    >>> adata = adata[(adata.obs["batch"] == "batch_0") | (adata.obs["group"] != "group_2")].copy()
    >>> vx.tl.fit_vae(adata, max_epochs=5)
    >>> predicted = vx.tl.predict_perturbation(
    ...     adata, "batch", control="batch_0", target="batch_1", groupby="group", groups="group_2"
    ... )
    >>> predicted.layers["mean"].shape == predicted.layers["control"].shape
    True
    >>> sorted(predicted.uns["perturbation"]["floors"])
    ['mean_shift', 'ridge']
    """
    check_adata(adata, copy=False)
    populations = Populations.find(
        adata.obs, perturbation_key, control=control, target=target, groupby=groupby, groups=groups
    )
    generator = seed_of(rng)
    seed = int(generator.integers(2**31))
    check_range("anchor", anchor, 0.0, 1.0)
    if not (isinstance(check, (bool, np.bool_)) or check == "refit"):
        msg = f"check={check!r} was given; True, False or 'refit' is expected."
        raise ValueError(msg)
    chosen = make_method(method, method_options, seed)
    check_target(populations, chosen, method)
    fit = find_fit(adata, model, key)
    check_counts(fit)
    keep = chosen.wants_kept(fit, perturbation_key)
    cells = PerturbedCells.read(adata, populations, model, key, layer, keep=keep)
    chosen.check(cells)
    start = logg.info(f"predicting {perturbation_key} = {populations.target} by {method!r}")
    with progress_bar("predict_perturbation", progress):
        refitter = Refitter(adata, cells, key, seed) if check == "refit" else None
        predictor = Predictor(cells, chosen, float(anchor), rescale=bool(check), refitter=refitter)
        checked = check_method(predictor, method) if check else None
        found = predict(predictor, seed=seed)
    warn(cells, found, checked, latent=chosen.in_latent_space)
    params = params_of(
        fit,
        key,
        perturbation_key=perturbation_key,
        control=populations.control,
        target=populations.target,
        groupby=groupby,
        method=method,
        method_options={name: value for name, value in (method_options or {}).items() if value is not None} or None,
        anchor=predictor.weight,
        check="refit" if check == "refit" else bool(check),
        keep=keep or None,
        rng=int(rng) if isinstance(rng, int) else None,
    )
    out = as_anndata(adata, cells, found, checked, params, latent=chosen.in_latent_space)
    logg.info("    finished", time=start)
    return out
