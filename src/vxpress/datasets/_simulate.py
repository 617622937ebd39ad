"""Simulated counts from a known model."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from vxpress._entry import entry
from vxpress._keys import LIBRARY_SIZE
from vxpress._seeds import seed_of

Floats = NDArray[np.float64]

# entries of the rows that are drawn at once; fixed, because the order of the draws depends on it
BLOCK_ENTRIES = 2**21
# sd of log expression between genes, and of log dispersion
EXPRESSION_SD = 1.2
DISPERSION_SD = 0.5
# share of genes following the continuous state, among those without group effect, and the sd of their log2 loadings
STATE_FRACTION = 0.2
STATE_SD = 0.5


@entry
def simulate(
    n_obs: int = 1000,
    n_vars: int = 500,
    *,
    n_groups: int = 4,
    n_batches: int = 1,
    library_mean: float = 1000.0,
    library_sd: float = 0.4,
    dispersion: float = 2.0,
    de_fraction: float = 0.3,
    de_log_fold_change: float = 1.0,
    batch_strength: float = 0.3,
    keep_truth: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    r"""Simulate counts of groups of cells in batches, with the true value of every quantity that a model estimates.

    .. math::

        x_{ng} \sim \mathrm{NB}(\mathrm{mean} = l_n \rho_{ng},\; \mathrm{var} = \mathrm{mean} + \mathrm{mean}^2 /
        \theta_g), \qquad \textstyle\sum_g \rho_{ng} = 1

    with :math:`l` log-normal between cells.
    The composition :math:`\rho` starts from log-normal gene means and is changed by three independent effects. Each
    group raises and lowers its own set of genes, each batch multiplies every gene, and a continuous state, standard
    normal in every group, changes a fifth of the remaining genes.
    Each effect leaves the shares of all other genes unchanged.
    So the log fold changes between groups are exactly the recorded ones in every batch, and exactly zero for all other
    genes: there are no composition effects.

    Parameters
    ----------
    n_obs
        Number of cells, divided evenly among groups and, independently, among batches.
    n_vars
        Number of genes.
    n_groups
        Number of groups; one group means no differential expression.
    n_batches
        Number of batches; one batch means no batch effect.
    library_mean
        Mean of the expected molecules per cell. With the default, about half of the counts are zero.
    library_sd
        Standard deviation of the natural log of the expected molecules per cell.
    dispersion
        Median of the inverse overdispersions :math:`\theta_g`, log-normal between genes; ``inf`` gives Poisson counts.
    de_fraction
        Fraction of the genes that differ between groups, divided evenly among groups, with at least two per group. Each
        of them is changed in one group only.
    de_log_fold_change
        Standard deviation of the log2 fold changes of these genes.
    batch_strength
        Standard deviation, over genes, of the natural log of a batch's factors.
    keep_truth
        Whether to write the composition of every cell to a dense layer of ``n_obs`` x ``n_vars``.
    rng
        Seed or generator; the same seed gives the same data.

    Returns
    -------
    Annotated matrix with the following fields:

    `adata.X` : :class:`scipy.sparse.csr_matrix` (dtype `float32`)
        Counts.
    `adata.obs['group']`, `adata.obs['batch']` : :class:`pandas.Series` (dtype `category`)
        Group and batch.
    `adata.obs['library_size']` : :class:`pandas.Series` (dtype `float64`)
        Counted molecules of the cell, as from :func:`vxpress.pp.library_size`.
    `adata.obs['library_size_true']` : :class:`pandas.Series` (dtype `float64`)
        Expected molecules, :math:`l`.
    `adata.obsm['latent_true']` : :class:`numpy.ndarray` (dtype `float32`, `n_obs` x (`n_groups` + 1))
        One column per group, 1 for its cells, and the continuous state.
    `adata.var['dispersion_true']` : :class:`pandas.Series` (dtype `float64`)
        :math:`\theta_g`.
    `adata.var['de_true']` : :class:`pandas.Series` (dtype `bool`)
        Whether the gene differs in any group.
    `adata.var['state_log_fold_change_true']` : :class:`pandas.Series` (dtype `float64`)
        Loading of the gene on the state, log2 per unit, up to the constant that preserves the joint share of these
        genes.
    `adata.varm['log_fold_change_true']` : :class:`numpy.ndarray` (`n_vars` x `n_groups`)
        log2 of the gene's share in the group over its share in a group without effect, in the same batch and state.
        Columns follow the categories of `adata.obs['group']`; differences of columns compare two groups.
    `adata.varm['batch_log_fold_change_true']` : :class:`numpy.ndarray` (`n_vars` x `n_batches`)
        log2 of the gene's share in the batch over its share without a batch effect, in every group.
    `adata.layers['rho_true']` : :class:`numpy.ndarray` (dtype `float32`)
        With ``keep_truth``, :math:`\rho`; each row sums to one.
    `adata.uns['simulate']` : :class:`dict`
        `'params'`, the arguments.

    Raises
    ------
    ValueError
        If an argument is out of range, or there are fewer than two genes per group.

    Examples
    --------
    >>> import vxpress as vx
    >>> adata = vx.datasets.simulate(300, 100, n_groups=3, n_batches=2, keep_truth=True)
    >>> adata.obs["group"].value_counts().tolist()
    [100, 100, 100]
    >>> adata.varm["log_fold_change_true"].shape
    (100, 3)
    >>> bool(abs(adata.layers["rho_true"].sum(axis=1) - 1).max() < 1e-5)
    True
    """
    params = {
        "n_obs": whole_number("n_obs", n_obs),
        "n_vars": whole_number("n_vars", n_vars),
        "n_groups": whole_number("n_groups", n_groups, n_obs),
        "n_batches": whole_number("n_batches", n_batches, n_obs),
        "library_mean": _number("library_mean", library_mean, 1e-3, 1e7),
        "library_sd": _number("library_sd", library_sd, 0.0, 5.0),
        "dispersion": _number("dispersion", dispersion, 1e-3, np.inf),
        "de_fraction": _number("de_fraction", de_fraction, 0.0, 1.0),
        "de_log_fold_change": _number("de_log_fold_change", de_log_fold_change, 0.0, 10.0),
        "batch_strength": _number("batch_strength", batch_strength, 0.0, 5.0),
    }
    if isinstance(rng, int | np.integer):
        params["rng"] = int(rng)
    rng = seed_of(rng)
    truth = _Truth.draw(
        _markers(n_vars, n_groups, de_fraction, rng),
        n_groups=n_groups,
        n_batches=n_batches,
        de_log_fold_change=de_log_fold_change,
        batch_strength=batch_strength,
        rng=rng,
    )
    theta_g = dispersion * np.exp(rng.normal(0.0, DISPERSION_SD, n_vars))
    group_n = rng.permutation(np.arange(n_obs) % n_groups)
    batch_n = rng.permutation(np.arange(n_obs) % n_batches)
    state_n = rng.normal(size=n_obs)
    library_n = library_mean * np.exp(rng.normal(0.0, library_sd, n_obs) - library_sd**2 / 2)

    blocks = []
    rho_ng = np.empty((n_obs, n_vars), dtype=np.float32) if keep_truth else None
    step = max(1, BLOCK_ENTRIES // n_vars)
    for start in range(0, n_obs, step):
        rows = slice(start, start + step)
        rho = truth.composition(group_n[rows], batch_n[rows], state_n[rows])
        if rho_ng is not None:
            rho_ng[rows] = rho
        blocks.append(_counts(library_n[rows, None] * rho, theta_g, rng))

    counts = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    obs = pd.DataFrame(
        {
            "group": _labels("group", group_n, n_groups),
            "batch": _labels("batch", batch_n, n_batches),
            LIBRARY_SIZE: counts @ np.ones(n_vars),
            "library_size_true": library_n,
        },
        index=_names("cell", n_obs),
    )
    var = pd.DataFrame(
        {
            "dispersion_true": theta_g,
            "de_true": (truth.group_gk != 0).any(axis=1),
            "state_log_fold_change_true": truth.state_g,
        },
        index=_names("gene", n_vars),
    )
    adata = AnnData(counts, obs=obs, var=var)
    adata.obsm["latent_true"] = np.column_stack([np.eye(n_groups)[group_n], state_n]).astype(np.float32)
    adata.varm["log_fold_change_true"] = truth.group_gk
    adata.varm["batch_log_fold_change_true"] = truth.batch_gb
    if rho_ng is not None:
        adata.layers["rho_true"] = rho_ng
    adata.uns["simulate"] = {"params": params}
    return adata


@dataclass(frozen=True)
class _Truth:
    """Gene shares without effects, and the log2 effects of groups, batches and state on them."""

    base_g: Floats
    group_gk: Floats
    batch_gb: Floats
    state_g: Floats

    @classmethod
    def draw(
        cls,
        marked: NDArray[np.intp],
        *,
        n_groups: int,
        n_batches: int,
        de_log_fold_change: float,
        batch_strength: float,
        rng: np.random.Generator,
    ) -> _Truth:
        """Draw the effects; ``marked`` holds the group that each gene marks, -1 for none."""
        n_vars = marked.size
        base_g = np.exp(rng.normal(0.0, EXPRESSION_SD, n_vars))
        base_g /= base_g.sum()
        group_gk = np.zeros((n_vars, n_groups))
        for k in range(n_groups):
            genes = np.flatnonzero(marked == k)
            if not genes.size:
                continue
            effect = rng.normal(0.0, de_log_fold_change, genes.size)
            group_gk[genes, k] = effect - _log2_growth(base_g[genes], effect)

        state_g = np.zeros(n_vars)
        unmarked = np.flatnonzero(marked < 0)
        followers = rng.permutation(unmarked)[: int(STATE_FRACTION * unmarked.size)]
        state_g[followers] = rng.normal(0.0, STATE_SD, followers.size)

        batch_gb = np.zeros((n_vars, n_batches))
        if n_batches > 1:
            for b in range(n_batches):
                factor_g = np.exp(rng.normal(0.0, batch_strength, n_vars))
                batch_gb[:, b] = np.log2(_balanced(factor_g, base_g, group_gk, marked))
        return cls(base_g, group_gk, batch_gb, state_g)

    def composition(self, group_n: NDArray[np.intp], batch_n: NDArray[np.intp], state_n: Floats) -> Floats:
        """Compute the shares of all genes in cells of these groups, batches and states."""
        rho_ng = self.base_g * np.exp2(self.group_gk.T[group_n] + self.batch_gb.T[batch_n])
        genes = np.flatnonzero(self.state_g)
        if genes.size:
            before = rho_ng[:, genes]
            after = before * np.exp2(np.outer(state_n, self.state_g[genes]))
            rho_ng[:, genes] = after * (before.sum(axis=1) / after.sum(axis=1))[:, None]
        return rho_ng


def _markers(n_vars: int, n_groups: int, de_fraction: float, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose the group that each gene marks, -1 for none."""
    marked = np.full(n_vars, -1)
    if n_groups == 1 or de_fraction == 0:
        return marked
    n_each = max(2, round(de_fraction * n_vars) // n_groups)
    if n_each * n_groups > n_vars:
        msg = (
            f"n_vars={n_vars} was given for n_groups={n_groups}; at least two genes per group are needed, so that one can be "
            "higher and one lower. Increase n_vars, or pass de_fraction=0."
        )
        raise ValueError(msg)
    marked[rng.permutation(n_vars)[: n_each * n_groups]] = np.repeat(np.arange(n_groups), n_each)
    return marked


def _log2_growth(share_g: Floats, effect_g: Floats) -> float:
    """Compute log2 of the factor by which these effects change the joint share of the genes."""
    return float(np.log2((share_g * np.exp2(effect_g)).sum() / share_g.sum()))


def _balanced(factor_g: Floats, base_g: Floats, group_gk: Floats, marked: NDArray[np.intp]) -> Floats:
    """Rescale batch factors so that they commute with the group effects.

    Among the genes of each group, raised and lowered genes are scaled separately, so that their joint share does not
    change, neither in this group (where the group effect applies) nor in the others.
    Then no normalising constant depends on group and batch together.
    """
    factor_g = factor_g.copy()
    for k in range(-1, group_gk.shape[1]):
        genes = np.flatnonzero(marked == k)
        if not genes.size:
            continue
        effect = group_gk[genes, k] if k >= 0 else np.zeros(genes.size)
        share, moved = base_g[genes], base_g[genes] * factor_g[genes]
        up = effect > 0
        if not up.any():
            factor_g[genes] *= share.sum() / moved.sum()
            continue
        gain = moved * np.expm1(effect * np.log(2))
        sums = [[moved[up].sum(), moved[~up].sum()], [gain[up].sum(), gain[~up].sum()]]
        scale_up, scale_down = np.linalg.solve(sums, [share.sum(), 0.0])
        factor_g[genes] *= np.where(up, scale_up, scale_down)
    return factor_g


def _counts(mean_ng: Floats, theta_g: Floats, rng: np.random.Generator) -> sparse.csr_matrix:
    """Draw negative binomial counts as a gamma mixture of Poisson counts."""
    if np.isfinite(theta_g).all():
        mean_ng = rng.standard_gamma(np.broadcast_to(theta_g, mean_ng.shape)) * (mean_ng / theta_g)
    return sparse.csr_matrix(rng.poisson(mean_ng).astype(np.float32))


def _names(stem: str, n: int) -> pd.Index:
    return pd.Index([f"{stem}_{i}" for i in range(n)])


def _labels(stem: str, codes: NDArray[np.intp], n: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=_names(stem, n))


def whole_number(name: str, value: int, most: int | None = None) -> int:
    """Return a whole number from 1 to ``most``; raises ``ValueError`` otherwise."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or (most is not None and number > most):
        limit = "at least 1" if most is None else f"1 to {most} (the number of cells)"
        msg = f"{name}={value!r} was given; a whole number of {limit} is expected."
        raise ValueError(msg)
    return number


def _number(name: str, value: float, low: float, high: float) -> float:
    if not isinstance(value, Real) or not low <= value <= high:
        msg = f"{name}={value!r} was given; a number from {low:g} to {high:g} is expected."
        raise ValueError(msg)
    return float(value)
