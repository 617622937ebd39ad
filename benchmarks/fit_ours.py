"""Fit vxpress on the benchmark data sets and store the results for the comparisons.

    python benchmarks/fit_ours.py --settings default likelihood scvi --seeds 0 1 2 3 4

Writes the same files as ``fit_scvi.py``, with the public API: ``vx.tl.fit_vae`` on the same cells and genes as scvi-tools,
with the sum over these genes as library. ``scvi`` is ``preset="scvi"``. Existing files are kept.
"""

from __future__ import annotations

import time
import warnings

import _cache
import numpy as np
import torch
from _judge import Judgement, judge
from _sets import SETS, load, split
from _speed import set_threads
from anndata import AnnData

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_query

SETTINGS = {
    "default": {},
    "likelihood": {"preset": "likelihood"},
    "scvi": {"preset": "scvi"},
}


def judge_fit(fitted: AnnData, test: AnnData, key: str = "vae", n_samples: int = 100) -> tuple[Judgement, np.ndarray]:
    """Compute scores of the test cells by ``_judge.py``, and their latent means."""
    fit = find_fit(fitted, None, key)
    cells = read_query(test, fit, None).cells
    model = fit.model

    def posterior(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        q = model.posterior(cells.batch(torch.from_numpy(rows)))["z"]
        return q.loc, q.scale

    def decoder(z: torch.Tensor, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        repeated = torch.from_numpy(rows).repeat(z.shape[0])
        distribution = model.likelihood(
            {"z": z.flatten(0, 1)}, cells.covariates[repeated], cells.log_library_n1[repeated]
        )
        shape = (*z.shape[:2], -1)
        base = getattr(distribution, "base", distribution)
        gate = distribution.gate_logits.reshape(shape) if base is not distribution else None
        return base.mean.reshape(shape), base.log_theta.exp().reshape(shape), gate

    with torch.no_grad():
        latent = posterior(np.arange(test.n_obs))[0].numpy()
    return judge(test.X.tocsr(), posterior, decoder, n_samples=n_samples), latent


def fit(name: str, seed: int, setting: str, threads: int) -> dict[str, np.ndarray]:
    """Fit vxpress once and evaluate the fit."""
    set_threads(threads)
    adata, test = load(name)
    start = time.perf_counter()
    vx.tl.fit_vae(adata, "batch" if SETS[name].batch else None, rng=seed, denoised=False, **SETTINGS[setting])
    seconds = time.perf_counter() - start
    held_out = np.flatnonzero(adata.obs["vae_split"] == "validation")
    if not np.array_equal(held_out, split(name, adata)[1]):
        msg = "scvi-tools was fitted with another split"
        raise RuntimeError(msg)
    scores, latent_test = judge_fit(adata, test)
    return {
        "seconds": np.array(seconds),
        "elbo": scores.elbo_n,
        "iwae": scores.iwae_n,
        "ess": scores.ess_n,
        "latent_fit": adata.obsm["X_vae"],
        "latent_test": latent_test,
        "steps": np.array(adata.uns["vae"]["params"]["n_steps"]),
        "verdict": np.array(adata.uns["vae"]["diagnostics"]["verdict"]),
    }


def main() -> None:
    """Fit every data set, setting and seed that is not in the cache."""
    options = _cache.parser(__doc__.splitlines()[0])
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    _cache.fill(args, "vx", args.settings, fit)


if __name__ == "__main__":
    main()
