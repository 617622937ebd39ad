"""Fit scvi-tools at its defaults on the benchmark data sets and store the results for the comparisons.

    python benchmarks/fit_scvi.py --sets pbmc3k kang pbmc_3studies --seeds 0 1 2 3 4 --out benchmarks/cache

Needs scvi-tools (``pip install ".[benchmark]"``). Writes one ``.npz`` per data set, likelihood and seed: per-cell scores of
the test cells by ``_judge.py``, latent means of fitted and test cells, and seconds. Existing files are kept.
"""

from __future__ import annotations

import time
import warnings

import _cache
import anndata as ad
import numpy as np
import torch
from _judge import judge
from _sets import SETS, load, split


def fit(name: str, seed: int, likelihood: str, threads: int) -> dict[str, np.ndarray]:
    """Fit scvi-tools once and evaluate the fit."""
    torch.set_num_threads(threads)
    fit_adata, test = load(name)
    batch = "batch" if SETS[name].batch else None
    return fit_and_judge(fit_adata, test, batch, split(name, fit_adata), seed=seed, likelihood=likelihood)


def fit_and_judge(
    fit_adata: ad.AnnData,
    test: ad.AnnData,
    batch: str | None,
    rows: tuple[np.ndarray, np.ndarray],
    *,
    seed: int,
    likelihood: str = "zinb",
) -> dict[str, np.ndarray]:
    """Fit SCVI to cells, of which ``rows`` are for training and validation, and evaluate it on test cells."""
    import scvi

    train, validation = rows
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(fit_adata, batch_key=batch)
    model = scvi.model.SCVI(fit_adata, gene_likelihood=likelihood)
    start = time.perf_counter()
    model.train(
        accelerator="cpu",
        enable_progress_bar=False,
        datasplitter_kwargs={"external_indexing": [train, validation, np.array([], dtype=int)]},
        logger=False,
    )
    seconds = time.perf_counter() - start
    module = model.module.eval()
    batches = fit_adata.obs["batch"].cat.categories if batch else ["all"]
    codes = batches.get_indexer(test.obs["batch"]) if batch else np.zeros(test.n_obs, dtype=int)
    library = torch.log(torch.from_numpy(np.asarray(test.X.sum(1), dtype=np.float32)))

    def posterior(rows: np.ndarray):
        x = torch.from_numpy(test.X[rows].toarray())
        out = module.inference(x, torch.from_numpy(codes[rows])[:, None])
        return out["qz"].loc, out["qz"].scale

    def decoder(z: torch.Tensor, rows: np.ndarray):
        n = z.shape[0]
        index = torch.from_numpy(codes[rows])[:, None].repeat(n, 1)
        flat = z.reshape(-1, z.shape[-1])
        px = module.generative(flat, library[rows].repeat(n, 1), index)["px"]
        shape = (n, len(rows), -1)
        gate = px.zi_logits.reshape(shape) if likelihood == "zinb" else None
        return px.mu.reshape(shape), px.theta.expand_as(px.mu).reshape(shape), gate

    scores = judge(test.X, posterior, decoder)
    return {
        "seconds": np.array(seconds),
        "elbo": scores.elbo_n,
        "iwae": scores.iwae_n,
        "ess": scores.ess_n,
        "latent_fit": model.get_latent_representation(),
        "latent_test": posterior(np.arange(test.n_obs))[0].detach().numpy(),
        "version": np.array(scvi.__version__),
    }


def main() -> None:
    """Fit every data set, likelihood and seed that is not in the cache."""
    options = _cache.parser(__doc__.splitlines()[0])
    options.add_argument("--likelihoods", nargs="+", default=["zinb"])
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    _cache.fill(args, "scvi", args.likelihoods, fit)


if __name__ == "__main__":
    main()
