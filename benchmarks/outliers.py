"""Evaluate outliers: calibration of p-values, false discovery rate, and detection of unusual cells.

    python benchmarks/outliers.py

Per data set and seed, 60 % of the cells are fitted, 20 % are for calibration and 20 % for testing; genes are chosen on the
fitted cells alone. Unusual cells: a cell type left out of all three parts (every type with 30 cells or more in turn),
doublets (sums of two test cells of different types from one batch), the same thinned to the depth of the deeper cell, and
cells in which half of the molecules are replaced by draws from the pooled profile. The plain score is the reconstruction
error -log p(x | z, s, l).

Other cells: Kolmogorov-Smirnov distance of p-values (ties broken at random) from the uniform distribution, over all test
cells, per batch and per third of depth, with a bound of 1.36 sqrt(1 / n_cal + 1 / n_test), a test at the 5 % level; and
Spearman's rho of score and log depth. False discoveries at 0.1 with 10 % or 30 % unusual cells among those tested, over
20 draws.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from _sets import DATA, SETS
from _versions import stamp
from scipy import sparse
from scipy.stats import false_discovery_control, kstest, spearmanr
from sklearn.metrics import roc_auc_score

import vxpress as vx
from vxpress.bridge.fits.find_fit import find_fit
from vxpress.bridge.fits.query import read_query

HERE = Path(__file__).parent / "results" / "outliers"
ALPHA, P_SMALL, SHARES, DRAWS = 0.1, 0.05, (0.1, 0.3), 20
MIN_TYPE, MOST_ODD = 30, 300


def load(name: str, max_cells: int) -> ad.AnnData:
    """Read the labelled cells of one data set."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    adata = adata[adata.obs[which.labels].notna().to_numpy()].copy()
    if adata.n_obs > max_cells:
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:max_cells])].copy()
    adata.obs["label"] = adata.obs[which.labels].astype(str)
    adata.obs["batch"] = "all" if which.batch is None else adata.obs[which.batch].astype(str)
    adata.obs = adata.obs[["label", "batch"]].copy()
    adata.uns, adata.obsm = {}, {}
    sc.pp.filter_cells(adata, min_counts=50)
    return adata


def fitted(reference: ad.AnnData, name: str, n_genes: int, seed: int) -> ad.AnnData:
    """Choose highly variable genes on the reference and fit it."""
    batch = "batch" if SETS[name].batch else None
    sc.pp.filter_genes(reference, min_cells=3)
    if reference.n_vars > n_genes:
        sc.experimental.pp.highly_variable_genes(
            reference, flavor="pearson_residuals", n_top_genes=n_genes, batch_key=batch, check_values=False
        )
        reference = reference[:, reference.var["highly_variable"]].copy()
    vx.tl.fit_vae(reference, batch, rng=seed, split_rng=seed, denoised=False)
    return reference


def thin(x: sparse.csr_matrix, share_n: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Keep every molecule with the probability of its cell."""
    kept = rng.binomial(x.data.astype(np.int64), np.repeat(share_n, np.diff(x.indptr))).astype(np.float32)
    return sparse.csr_matrix((kept, x.indices, x.indptr), shape=x.shape)


def simulate(test: ad.AnnData, reference: ad.AnnData, rng: np.random.Generator) -> dict[str, ad.AnnData]:
    """Make doublets, doublets at the depth of one cell, and cells with half their molecules from the pooled profile."""
    x = test.X.tocsr().astype(np.float32)
    label, batch = test.obs["label"].to_numpy(), test.obs["batch"].to_numpy()
    pairs = []
    for i in range(test.n_obs):
        others = np.flatnonzero((label != label[i]) & (batch == batch[i]))
        pairs += [(i, rng.choice(others))] if len(others) else []
    one, two = np.array(pairs)[rng.permutation(len(pairs))[:MOST_ODD]].T
    depth = np.asarray(x.sum(1)).ravel()
    double = (x[one] + x[two]).tocsr()
    own = thin(x[one].tocsr(), np.full(len(one), 0.5), rng)
    profile = np.asarray(reference.X.sum(0), dtype=np.float64).ravel()
    lost = (depth[one] - np.asarray(own.sum(1)).ravel()).astype(int)
    ambient = np.stack([rng.multinomial(n, profile / profile.sum()) for n in lost])
    made = {
        "doublet": double,
        "thinned doublet": thin(double, np.maximum(depth[one], depth[two]) / (depth[one] + depth[two]), rng),
        "ambient 50 %": sparse.csr_matrix(own + sparse.csr_matrix(ambient.astype(np.float32))),
    }
    return {
        name: ad.AnnData(matrix, obs=test.obs.iloc[one].copy(), var=test.var[[]].copy())
        for name, matrix in made.items()
    }


@torch.no_grad()
def plain_error(adata: ad.AnnData, reference: ad.AnnData) -> np.ndarray:
    """Compute -log p(x | z, s, l) at the posterior mean."""
    fit = find_fit(reference, None, "vae")
    cells = read_query(adata, fit, None).cells
    parts = []
    for rows in torch.arange(len(cells)).split(512):
        batch = cells.batch(rows)
        parts.append(-fit.model.log_likelihood({"z": fit.model.posterior(batch)["z"].loc}, batch)["rna"])
    return torch.cat(parts).double().numpy()


def score(adata: ad.AnnData, reference: ad.AnnData, calibration: ad.AnnData, **kwargs) -> pd.DataFrame:
    """Run vx.tl.outliers, and add the plain score to its results."""
    adata = adata[:, reference.var_names].copy()
    vx.tl.outliers(adata, reference, calibration=calibration, **kwargs)
    out = adata.obs.copy()
    out["plain"] = plain_error(adata, reference)
    out["log_depth"] = np.log(np.asarray(adata.X.sum(1)).ravel())
    return out[out["vae_outlier_pval"].notna()]


def clean_rows(test: pd.DataFrame, calibration: ad.AnnData) -> list[dict]:
    """Evaluate the calibration of cells like those of the fit: all, per batch, per third of depth."""
    calibration_depth = np.log(np.maximum(np.asarray(calibration.X.sum(1)).ravel(), 1))
    edges = np.quantile(calibration_depth, [1 / 3, 2 / 3])
    groups = {"all": (np.ones(len(test), bool), len(calibration))}
    if test["batch"].nunique() > 1:
        for name in test["batch"].unique():
            groups[f"batch {name}"] = (
                (test["batch"] == name).to_numpy(),
                int((calibration.obs["batch"] == name).sum()),
            )
    third = np.searchsorted(edges, test["log_depth"])
    for i in range(3):
        groups[f"depth third {i + 1}"] = (third == i, int((np.searchsorted(edges, calibration_depth) == i).sum()))
    rows = []
    for name, (members, n_cal) in groups.items():
        n = int(members.sum())
        if n < 20 or n_cal < 20:
            continue
        ks = kstest(test["vae_outlier_pval"][members], "uniform").statistic
        bound = 1.36 * np.sqrt(1 / n_cal + 1 / n)
        rows.append({"what": "ks", "group": name, "ks": ks, "bound": bound, "n_cal": n_cal, "n_test": n})
    for column in ("vae_outlier_score", "plain"):
        rho = spearmanr(test[column], test["log_depth"]).statistic
        rows.append({"what": "rho", "group": column, "rho": rho})
    return rows


def odd_rows(kind: str, test: pd.DataFrame, odd: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Evaluate the ranking of unusual cells above the others, and discoveries among mixtures of both."""
    truth = np.r_[np.zeros(len(test)), np.ones(len(odd))]
    row = {"what": "odd", "kind": kind, "n_odd": len(odd)}
    for name, column in (("auroc", "vae_outlier_score"), ("auroc_plain", "plain")):
        row[name] = roc_auc_score(truth, np.r_[test[column], odd[column]])
    row["found"] = float((odd["vae_outlier_pval"] <= P_SMALL).mean())
    for share in SHARES:
        fdp, power = [], []
        n_odd = min(len(odd), round(len(test) * share / (1 - share)))
        n_clean = min(len(test), round(n_odd * (1 - share) / share))
        for _ in range(DRAWS):
            clean = test["vae_outlier_pval"].to_numpy()[rng.permutation(len(test))[:n_clean]]
            some = odd["vae_outlier_pval"].to_numpy()[rng.permutation(len(odd))[:n_odd]]
            found = false_discovery_control(np.r_[clean, some]) <= ALPHA
            fdp.append(found[:n_clean].sum() / max(1, found.sum()))
            power.append(found[n_clean:].mean())
        row |= {f"fdp {share:.0%}": float(np.mean(fdp)), f"power {share:.0%}": float(np.mean(power))}
    return row


def run(name: str, seeds: list[int], max_cells: int, n_genes: int) -> list[dict]:
    """Compute all rows of one data set."""
    adata = load(name, max_cells)
    sizes = adata.obs["label"].value_counts()
    rows = []
    for seed in seeds:
        for left_out in (None, *sizes.index[sizes >= MIN_TYPE]):
            rng = np.random.default_rng(seed)
            inside = rng.permutation(np.flatnonzero((adata.obs["label"] != left_out).to_numpy()))
            fit_n, calibration_n, test_n = np.split(inside, [int(0.6 * len(inside)), int(0.8 * len(inside))])
            reference = fitted(adata[np.sort(fit_n)].copy(), name, n_genes, seed)
            calibration, test = (adata[rows_n][:, reference.var_names].copy() for rows_n in (calibration_n, test_n))
            tested = score(test, reference, calibration)
            if left_out is None:
                new = clean_rows(score(test, reference, calibration, randomize_ties=True), calibration)
                for kind, cells in simulate(test, reference, rng).items():
                    new.append(odd_rows(kind, tested, score(cells, reference, calibration), rng))
            else:
                odd = rng.permutation(np.flatnonzero((adata.obs["label"] == left_out).to_numpy()))[:MOST_ODD]
                new = [odd_rows("left-out type", tested, score(adata[odd], reference, calibration), rng)]
            rows += [{"set": name, "seed": seed, "type": str(left_out)} | row for row in new]
            print(
                name,
                seed,
                left_out,
                *(f"{r['auroc']:.3f} ({r['auroc_plain']:.3f})" for r in new if "auroc" in r),
                flush=True,
            )
    return rows


def report(table: pd.DataFrame) -> None:
    """Print the scores that have targets."""
    ks = table[table["what"] == "ks"].copy()
    ks["kept"] = ks["ks"] <= ks["bound"]
    ks["group"] = ks["group"].str.replace(r" \S+$", "", regex=True)
    print("\nKS within its bound, share of tests (about 0.95 is expected for uniform p-values)")
    print(
        ks.groupby(["set", "group"])[["kept", "ks", "bound"]]
        .agg({"kept": ["mean", "size"], "ks": "max", "bound": "mean"})
        .round(3)
    )
    rho = table[table["what"] == "rho"].assign(rho=lambda t: t["rho"].abs())
    print("\n|rho(score, log depth)| of test cells like those of the fit, mean and largest over seeds")
    print(rho.groupby(["set", "group"])["rho"].agg(["mean", "max"]).round(3))
    odd = table[table["what"] == "odd"].copy()
    columns = [
        "auroc",
        "auroc_plain",
        "found",
        *(f"{what} {share:.0%}" for share in SHARES for what in ("fdp", "power")),
    ]
    by_type = odd.groupby(["set", "kind", "type"])[columns].mean()
    mean = by_type.groupby(["set", "kind"]).mean()
    mean.insert(2, "ratio", (1 - mean["auroc"]) / (1 - mean["auroc_plain"]))
    per_seed = odd.groupby(["set", "kind", "seed"])[["auroc", "auroc_plain"]].mean()
    per_seed["ratio"] = (1 - per_seed["auroc"]) / (1 - per_seed["auroc_plain"])
    mean.insert(3, "sd", per_seed.groupby(["set", "kind"])["ratio"].std())
    print(
        "\nUnusual cells: AUROC, means over seeds and types; ratio of 1 - AUROC and its sd over seeds; share with p <= 0.05;"
    )
    print("false discovery proportion and power at 0.1 with 10 % and 30 % unusual cells among those tested")
    print(mean.round(3).to_string())
    print("\nLeft-out types")
    print(by_type.xs("left-out type", level="kind").round(3).to_string())
    for share in SHARES:
        fdp = odd.groupby(["set", "seed", "kind"])[f"fdp {share:.0%}"].mean().reset_index()
        total = fdp.groupby("kind")[f"fdp {share:.0%}"].agg(["mean", "std", "size"])
        total["s.e."] = total["std"] / np.sqrt(total["size"])
        total["limit"] = ALPHA + 2 * total["s.e."]
        print(f"\nRealised false discovery rate at 0.1, {share:.0%} unusual cells, over data sets and seeds")
        print(total[["mean", "s.e.", "limit", "size"]].round(3).to_string())


def main() -> None:
    """Compute missing results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--max-cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=1_000)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    HERE.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.sets:
        for seed in args.seeds:
            out = HERE / f"{name}-{seed}-{args.max_cells}-{args.genes}.json"
            if not out.exists():
                out.write_text(json.dumps(run(name, [seed], args.max_cells, args.genes), indent=1) + "\n")
                stamp(f"outliers/{out.stem}")
            rows += json.loads(out.read_text())
    report(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
