"""Evaluate the readout of genes outside the modelled subset, compared with modelling them and with the batch mean.

    python benchmarks/readout.py

Per data set, 1,000 highly variable genes are modelled and 1,000 further genes are read out; the other fit models all
2,000. The score is the held-out Poisson loss per gene and test cell, ``mean - x log mean``, at the cell's library; lower is
better. The baseline is the mean share of the gene in the cell's batch. Intervals are over cells, paired.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from _sets import SETS, load
from _versions import stamp
from anndata import AnnData

import vxpress as vx

HERE = Path(__file__).parent


def poisson_loss(x: np.ndarray, share: np.ndarray, library: np.ndarray) -> np.ndarray:
    """Average ``m - x log m`` over genes for every cell, with m = library x share."""
    mean = np.maximum(share * library[:, None], 1e-12)
    return (mean - x * np.log(mean)).mean(1)


def denoised_share(reference: AnnData, test: AnnData) -> np.ndarray:
    """Decode the share of every gene in the test cells under their own batch."""
    query = test.copy()
    vx.tl.encode(query, reference)
    batches = reference.obs["batch"].cat.categories if "batch" in reference.obs else [None]
    out = np.empty(query.shape)
    for name in batches:
        rows = np.ones(query.n_obs, dtype=bool) if name is None else np.asarray(query.obs["batch"] == name)
        if rows.any():
            part = query[rows].copy()
            vx.tl.denoise(part, transform_batch=name, target_sum=1.0)
            out[rows] = part.layers["vae_normalized"]
    return out


def batch_mean(fit: AnnData, test: AnnData) -> np.ndarray:
    """Compute the mean share of each gene over the training molecules of the test cell's batch."""
    codes = fit.obs["batch"].astype(str) if "batch" in fit.obs else pd.Series("all", fit.obs_names)
    own = test.obs["batch"].astype(str) if "batch" in test.obs else pd.Series("all", test.obs_names)
    table = {}
    for name in codes.unique():
        sums = np.asarray(fit.X[(codes == name).to_numpy()].sum(0)).ravel() + 0.5
        table[name] = sums / sums.sum()
    return np.stack([table[name] for name in own])


def one(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute per-cell losses of readout, direct model and batch mean on the genes that are not modelled."""
    fit, test = load(name)
    batch = "batch" if SETS[name].batch else None
    if batch is None:
        for part in (fit, test):
            part.obs.pop("batch") if "batch" in part.obs else None
    sc.experimental.pp.highly_variable_genes(
        fit, flavor="pearson_residuals", n_top_genes=fit.n_vars // 2, batch_key=batch, check_values=False
    )
    left_out = ~fit.var["highly_variable"].to_numpy()
    subset, direct = fit.copy(), fit.copy()
    vx.tl.fit_vae(subset, batch, rng=seed, denoised=False)
    vx.tl.fit_vae(direct, batch, mask_var=None, rng=seed, denoised=False)
    x = test.X.toarray()
    library = x.sum(1)
    shares = [denoised_share(subset, test), denoised_share(direct, test), batch_mean(fit, test)]
    losses = [poisson_loss(x[:, left_out], share[:, left_out], library) for share in shares]
    return losses[0], losses[1], losses[2]


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows = []
    for name in args.sets:
        readout, direct, mean = (
            np.mean(part, axis=0) for part in zip(*(one(name, s) for s in args.seeds), strict=True)
        )
        gap = readout - direct
        half = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
        closed = 100 * (mean.mean() - readout.mean()) / (mean.mean() - direct.mean())
        rows.append(
            {
                "set": name,
                "readout": readout.mean(),
                "modelled": direct.mean(),
                "batch mean": mean.mean(),
                "readout - modelled": gap.mean(),
                "+-": half,
                "gap closed %": closed,
            }
        )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.5f}".format))
    out = HERE / "results" / "readout.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(table.to_dict("records"), indent=1) + "\n")
    stamp("readout")


if __name__ == "__main__":
    main()
