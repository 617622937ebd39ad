"""Evaluate differential expression: calibration, power and time.

    python benchmarks/differential_expression.py null    # random halves of one cell type of one donor
    python benchmarks/differential_expression.py truth   # genes thinned in one half; simulated groups
    python benchmarks/differential_expression.py speed   # 10 groups, 20,000 x 2,000

Prints tables and writes ``benchmarks/results/differential_expression.json``.  The threshold and the weight of the model's
expectation were chosen on kang_ctrl; these tables use the CD4 T cells of one donor of the CITE-seq set and simulated counts.
``truth`` and ``speed`` need scvi-tools (``--no-scvi`` leaves it out).
"""

from __future__ import annotations

import argparse
import time
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _sets import DATA
from _speed import alternate, save, set_threads, timed
from scipy import sparse, stats

import vxpress as vx

SIZES = (50, 200, 1000)
N_GENES = 2_000
SCVI_EPOCHS = 100


def donor(n_others: int = 1_000) -> ad.AnnData:
    """Read the CD4 T cells of one donor and some other cells, on 2,000 genes drawn from those in 30 cells or more."""
    adata = ad.read_h5ad(DATA / "pbmc_cite_10k_5k.h5ad")
    adata = adata[adata.obs["batch"] == "PBMC10k"].copy()
    rng = np.random.default_rng(0)
    cd4 = (adata.obs["cell_type"] == "CD4 T").to_numpy()
    others = rng.permutation(np.flatnonzero(~cd4))[:n_others]
    adata = adata[np.sort(np.concatenate([np.flatnonzero(cd4), others]))].copy()
    adata.uns, adata.obsm = {}, {}
    sc.pp.filter_genes(adata, min_cells=30)
    return adata[:, np.sort(rng.permutation(adata.n_vars)[:N_GENES])].copy()


def halves(adata: ad.AnnData, size: int, rng: np.random.Generator) -> ad.AnnData:
    """Draw two random halves of ``size`` CD4 T cells each, as ``obs["half"]``."""
    pick = rng.permutation(np.flatnonzero(adata.obs["cell_type"] == "CD4 T"))[: 2 * size]
    out = adata[pick].copy()
    out.obs["half"] = pd.Categorical(np.repeat(["a", "b"], size))
    return out


def spike(adata: ad.AnnData, rng: np.random.Generator, *, share: float = 0.1, keep: float = 0.5) -> np.ndarray:
    """Thin a tenth of the genes in one half of the CD4 T cells, alternating halves so that neither loses more molecules."""
    cd4 = rng.permutation(np.flatnonzero(adata.obs["cell_type"] == "CD4 T"))
    sides = np.array_split(cd4, 2)
    half = np.full(adata.n_obs, "none", dtype=object)
    x = adata.X.toarray()
    mean = x[cd4].mean(0)
    genes = rng.choice(np.flatnonzero(mean > 0.02), int(share * adata.n_vars), replace=False)
    genes = genes[np.argsort(-mean[genes])]
    turn = np.arange(len(genes)) % 4
    for name, cells, chosen in zip(
        "ab", sides, (genes[(turn == 1) | (turn == 2)], genes[(turn == 0) | (turn == 3)]), strict=True
    ):
        half[cells] = name
        x[np.ix_(cells, chosen)] = rng.binomial(x[np.ix_(cells, chosen)].astype(int), keep)
    adata.X, adata.obs["half"] = sparse.csr_matrix(x.astype(np.float32)), pd.Categorical(half)
    return np.isin(np.arange(adata.n_vars), genes)


def ranking(adata: ad.AnnData, group: str) -> pd.DataFrame:
    """Return the stored result of a group in the order of the genes."""
    return sc.get.rank_genes_groups_df(adata, group).set_index("names").loc[adata.var_names]


def wilcoxon(adata: ad.AnnData, groupby: str, group: str, *, tie_correct: bool) -> pd.DataFrame:
    """Run scanpy's rank sum test on log-normalised counts."""
    out = adata.copy()
    sc.pp.normalize_total(out)
    sc.pp.log1p(out)
    sc.tl.rank_genes_groups(out, groupby, groups=[group], method="wilcoxon", tie_correct=tie_correct)
    return ranking(out, group)


def scvi_fit(adata: ad.AnnData, seed: int, batch: str | None = None, max_epochs: int = SCVI_EPOCHS):
    """Fit scvi-tools."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model


def score(calls: np.ndarray, evidence: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute FDP and power of the calls, and the power of the longest list of genes with an FDP of at most .05."""
    order = np.argsort(-evidence, kind="stable")
    found = truth[order]
    fdp = np.cumsum(~found) / np.arange(1, len(found) + 1)
    within = np.flatnonzero(fdp <= 0.05)
    matched = found[: within[-1] + 1].sum() / truth.sum() if len(within) else 0.0
    return {
        "calls": int(calls.sum()),
        "FDP": float((calls & ~truth).sum() / max(1, calls.sum())),
        "power": float(calls[truth].mean()),
        "power at FDP .05": float(matched),
    }


def score_frame(frame: pd.DataFrame, truth: np.ndarray, keep: np.ndarray | None = None) -> dict[str, float]:
    """Compute the same for a ranking."""
    rows = slice(None) if keep is None else keep
    z = stats.norm.isf(np.clip(frame["pvals"].to_numpy() / 2, 1e-300, 0.5)) + 1e-9 * np.abs(frame["scores"].to_numpy())
    return score((frame["pvals_adj"] < 0.05).to_numpy()[rows], z[rows], truth[rows])


def null(args: argparse.Namespace) -> None:
    """Compute the share of random splits with any call, and the distribution of p-values."""
    adata = donor()
    vx.tl.fit_vae(adata, denoised=False)
    rows = []
    for size in SIZES:
        rng = np.random.default_rng(1)
        for _ in range(args.splits):
            part = halves(adata, size, rng)
            for name, delta in (("vxpress", 0.1), ("vxpress, delta=0", 0.0)):
                vx.tl.rank_genes_groups(part, "half", groups=["a"], delta=delta, n_draws=2, n_cells=200)
                rows.append({"half": size, "method": name} | null_row(ranking(part, "a")))
            if args.wilcoxon:
                row = null_row(wilcoxon(part, "half", "a", tie_correct=True))
                rows.append({"half": size, "method": "wilcoxon, tie_correct"} | row)
    table = pd.DataFrame(rows).groupby(["half", "method"]).mean().round(5)
    print(f"\n{args.splits} random splits of the CD4 T cells of one donor, {adata.n_vars} genes\n{table.to_string()}")
    print(
        "saved",
        save("differential_expression", {"null": table.reset_index().to_dict("records"), "splits": args.splits}),
    )


def null_row(frame: pd.DataFrame) -> dict[str, float]:
    """Evaluate one split."""
    called = (frame["pvals_adj"] < 0.05).mean()
    return {
        "any call": float(called > 0),
        "genes called": called,
        "p < .05": (frame["pvals"] < 0.05).mean(),
        "p < .001": (frame["pvals"] < 0.001).mean(),
    }


def truth(args: argparse.Namespace) -> None:
    """Compute FDP and power on data with known truth."""
    rows = []
    for seed in range(args.seeds):
        rows += thinned(seed, peer=args.scvi) + simulated(seed, peer=args.scvi)
    table = pd.DataFrame(rows)
    by = table.drop(columns="seed").groupby(["truth", "cells", "method"], sort=False)
    print(by.mean().round(3).to_string(), "\n\nstandard deviation over seeds\n", by.std().round(3).to_string())
    print("saved", save("differential_expression", {"truth": table.to_dict("records")}))


def thinned(seed: int, *, peer: bool) -> list[dict[str, object]]:
    """Evaluate genes thinned in one half, with 50 to 1,000 cells per half."""
    adata = donor()
    true = spike(adata, np.random.default_rng(seed))
    vx.tl.fit_vae(adata, denoised=False, rng=seed)
    model = scvi_fit(adata, seed) if peer else None
    rows = []
    for size in SIZES:
        pick = np.concatenate([np.flatnonzero(adata.obs["half"] == side)[:size] for side in "ab"])
        part = adata[pick].copy()
        results = {}
        for name, delta in (("vxpress", 0.1), ("vxpress, delta=0", 0.0)):
            vx.tl.rank_genes_groups(part, "half", groups=["a"], delta=delta)
            results[name] = score_frame(ranking(part, "a"), true)
        vx.tl.rank_genes_groups(part, "half", groups=["a"], use_counts=False)
        results["vxpress, use_counts=False"] = score_frame(ranking(part, "a"), true)
        for name, ties in (("wilcoxon", False), ("wilcoxon, tie_correct", True)):
            results[name] = score_frame(wilcoxon(part, "half", "a", tie_correct=ties), true)
        if model is not None:
            found = model.differential_expression(
                part, groupby="half", group1="a", group2="b", mode="change", silent=True
            )
            found = found.loc[adata.var_names]
            results["scvi-tools"] = score(found["is_de_fdr_0.05"].to_numpy(), found["proba_de"].to_numpy(), true)
        rows += [{"truth": "thinned by half", "cells": size, "seed": seed, "method": m} | r for m, r in results.items()]
    return rows


def simulated(seed: int, *, peer: bool) -> list[dict[str, object]]:
    """Evaluate five simulated groups in two batches, each compared with the rest; genes that no group changes are the null."""
    adata = vx.datasets.simulate(
        2_000, 1_000, n_groups=5, n_batches=2, library_mean=700, de_fraction=0.3, de_log_fold_change=0.7, rng=seed
    )
    vx.tl.fit_vae(adata, "batch", denoised=False, rng=seed)
    model = scvi_fit(adata, seed, "batch") if peer else None
    fold = 2.0 ** adata.varm["log_fold_change_true"]
    unchanged = ~adata.var["de_true"].to_numpy()
    rows = []
    vx.tl.rank_genes_groups(adata, "group")
    vx.tl.rank_genes_groups(adata, "group", delta=0.0, key_added="any")
    for i, group in enumerate(adata.obs["group"].cat.categories):
        true = np.abs(np.log2(fold[:, i] / np.delete(fold, i, axis=1).mean(1))) > 1e-3
        keep = true | unchanged
        results = {
            "vxpress": score_frame(ranking(adata, group), true, keep),
            "vxpress, delta=0": score_frame(
                sc.get.rank_genes_groups_df(adata, group, key="any").set_index("names").loc[adata.var_names], true, keep
            ),
        }
        for name, ties in (("wilcoxon", False), ("wilcoxon, tie_correct", True)):
            results[name] = score_frame(wilcoxon(adata, "group", group, tie_correct=ties), true, keep)
        if model is not None:
            found = model.differential_expression(groupby="group", group1=group, mode="change", silent=True)
            found = found.loc[adata.var_names][keep]
            results["scvi-tools"] = score(found["is_de_fdr_0.05"].to_numpy(), found["proba_de"].to_numpy(), true[keep])
        rows += [{"truth": "simulated groups", "cells": 400, "seed": seed, "method": m} | r for m, r in results.items()]
    return rows


def speed(args: argparse.Namespace) -> None:
    """Time one call over ten groups."""
    adata = vx.datasets.simulate(20_000, 2_000, n_groups=10, n_batches=2, library_mean=1_000, rng=0)
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    vx.tl.fit_vae(adata, "batch", denoised=False, max_epochs=1)
    normal = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var[[]])
    sc.pp.normalize_total(normal)
    sc.pp.log1p(normal)
    calls = {
        "vxpress": lambda: vx.tl.rank_genes_groups(adata, "group"),
        "vxpress, use_counts=False": lambda: vx.tl.rank_genes_groups(adata, "group", use_counts=False),
        "wilcoxon": lambda: sc.tl.rank_genes_groups(normal, "group", method="wilcoxon"),
    }
    if args.scvi:
        model = scvi_fit(ad.AnnData(adata.X, obs=adata.obs.copy(), var=adata.var[[]]), 0, "batch", max_epochs=1)
        for mode in ("vanilla", "change"):
            calls[f"scvi-tools, {mode}"] = lambda mode=mode: model.differential_expression(
                groupby="group", mode=mode, silent=True
            )
    calls["vxpress"]()
    times = alternate({name: lambda call=call: timed(call) for name, call in calls.items()}, args.repeats)
    for name, seconds in times.items():
        print(f"{name:28} {np.median(seconds):8.2f} s  {np.round(seconds, 2)}", flush=True)
    median = {name: float(np.median(values)) for name, values in times.items()}
    for name in list(times)[1:]:
        print(f"{name} / vxpress = {median[name] / median['vxpress']:.2f}")
    print(
        "saved",
        save("differential_expression", {"speed": {"seconds": times, "density": adata.X.nnz / np.prod(adata.shape)}}),
    )


def main() -> None:
    """Run one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["null", "truth", "speed"])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-scvi", dest="scvi", action="store_false")
    parser.add_argument(
        "--wilcoxon", action="store_true", help="for null: also run the rank sum test on the same splits"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(args.threads)
    start = time.perf_counter()
    {"null": null, "truth": truth, "speed": speed}[args.what](args)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
