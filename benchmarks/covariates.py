"""What is a covariate worth: are null columns called worthless, true ones found, and confounded ones recognised?

    python benchmarks/covariates.py --only null        # random columns: p below .05 in 5 % of draws?
    python benchmarks/covariates.py --only adjusted    # random columns in addition to a true batch
    python benchmarks/covariates.py --only true        # batches and conditions of real data: all found?
    python benchmarks/covariates.py --only confounded  # at which association does a correction remove the condition?

The numbers are those of ``uns["vae"]["diagnostics"]["covariates"]`` of fits at the defaults, except that no covariate is left
out before training (``screen_covariates=False``), so that random columns are judged as well. Random columns have 2, 8 or 40
categories of equal size, or 90 % of the cells in the first of 2 or 8. (With 40, the others of such a column would have two
cells each, and none of them would be held out.) Each draw takes 600 cells, new labels, and new seeds of split and fit.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
from _sets import DATA
from _speed import RESULTS, save, set_threads
from scipy import sparse, stats

KINDS = ((2, 0.0), (8, 0.0), (40, 0.0), (2, 0.9), (8, 0.9))
NULL = {"paul15": "paul15", "worm": "worm_l2_neurons", "pbmc3k": "pbmc3k_raw"}
# a true batch next to the random column
ADJUSTED = {
    "paul15": ("paul15", "seq_batch"),
    "worm": ("worm_l2_neurons", "batch"),
    "kang_ctrl": ("kang_ctrl_8donors", "batch"),
}
TRUE = (
    ("kang", "kang_ifnb", "batch"),
    ("kang", "kang_ifnb", "condition"),
    ("pbmc_3studies", "pbmc_3studies_v1", "batch"),
    ("kang_ctrl", "kang_ctrl_8donors", "batch"),
    ("cite", "pbmc_cite_10k_5k", "batch"),
    ("paul15", "paul15", "seq_batch"),
    ("paul15", "paul15", "batch"),
    ("glioblastoma", "glioblastoma_panobinostat", "batch"),
    ("glioblastoma", "glioblastoma_panobinostat", "condition"),
    ("worm", "worm_l2_neurons", "batch"),
    ("onek1k", "onek1k_donors", "batch"),
    ("papalexi", "papalexi_eccite_20k", "batch"),
    ("norman_mcfaline", "norman_mcfaline_perturbench", "batch"),
    ("rnamix", "rnamix", "batch"),
    ("pancreas", "pancreas_human_mouse_baron350", "batch"),
)
# share of the cells of a batch that have its condition
SHARES = (0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 1.0)


def cells_of(file: str, n_genes: int, max_cells: int, columns: tuple[str, ...] = ()) -> ad.AnnData:
    """Read cells with values in ``columns``, at most ``max_cells``, and the most variable genes."""
    import vxpress as vx

    whole = ad.read_h5ad(DATA / f"{file}.h5ad")
    whole = whole[whole.obs[list(columns)].notna().all(axis=1).to_numpy()]
    adata = ad.AnnData(sparse.csr_matrix(whole.X), obs=whole.obs[list(columns)].astype(str), var=whole.var[[]])
    if adata.n_obs > max_cells:
        adata = adata[np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:max_cells])].copy()
    sc.pp.filter_genes(adata, min_cells=10)
    if adata.n_vars > n_genes:
        vx.pp.highly_variable_genes(adata, n_top_genes=n_genes)
        adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.filter_cells(adata, min_counts=5)
    return adata


def random_column(n: int, n_categories: int, first: float, rng: np.random.Generator) -> np.ndarray:
    """Draw labels: categories of equal size, or the share ``first`` of the cells in the first one."""
    n_first = round(first * n)
    codes = np.arange(n) % n_categories
    if first:
        codes = np.concatenate((np.zeros(n_first, dtype=int), 1 + np.arange(n - n_first) % (n_categories - 1)))
    return rng.permutation(codes).astype(str)


def judged(adata: ad.AnnData, batch_key: str, seed: int, **arguments: Any) -> list[dict[str, Any]]:
    """Fit at the defaults and return the record of each covariate, with the seconds of the fit and of judging covariates."""
    import vxpress as vx
    import vxpress.bridge.health.diagnose_fit as module

    plain, spent = module.worth_of, [0.0]

    def timed(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        found = plain(*given, **named)
        spent[0] += time.process_time() - start
        return found

    module.worth_of = timed
    start = time.process_time()
    try:
        options = vx.tl.FitOptions(screen_covariates=False)
        vx.tl.fit_vae(
            adata, batch_key, denoised=False, device="cpu", rng=seed, split_rng=seed, options=options, **arguments
        )
    finally:
        module.worth_of = plain
    seconds = time.process_time() - start
    record = adata.uns["vae"]["diagnostics"]["covariates"]
    return [
        {
            "covariate": str(record["name"][k]),
            "n_categories": int(record["n_categories"][k]),
            **{name: float(record[name][k]) for name in ("worth", "low", "high", "p")},
            "n_compared": int(record["n_compared"][k]),
            "seconds": seconds,
            "seconds_worth": spent[0],
        }
        for k in range(len(record["name"]))
    ]


def draw(name: str, adata: ad.AnnData, number: int, kind: tuple[int, float], batch: str | None) -> dict[str, Any]:
    """Judge a random column, alone or in addition to a true batch."""
    n_categories, first = kind
    rng = np.random.default_rng([number, n_categories, round(10 * first)])
    some = adata[np.sort(rng.permutation(adata.n_obs)[:600])].copy()
    some.obs["null"] = random_column(some.n_obs, n_categories, first, rng)
    seed = int(rng.integers(2**31))
    if batch is None:
        found = judged(some, "null", seed)
    else:
        found = judged(some, batch, seed, categorical_covariate_keys=["null"])
    return {"set": name, "kind": n_categories, "first": first, "draw": number, **found[-1]}


def draws(part: str, sets: dict[str, tuple[str, str | None]], n_draws: int) -> dict[str, Any]:
    """Judge random columns of every kind in every data set; a round of draws is saved as soon as it is done."""
    cells = {name: cells_of(file, 300, 10**9, (batch,) if batch else ()) for name, (file, batch) in sets.items()}
    found: dict[str, Any] = {"rows": []}
    for number in range(n_draws):
        found["rows"] += [draw(name, cells[name], number, kind, sets[name][1]) for name in sets for kind in KINDS]
        found["summary"] = summary(found["rows"])
        save("covariates", {part: found})
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise p-values: share below .05 with its exact binomial interval, and a test of uniformity."""
    p = np.array([row["p"] for row in rows])
    p = p[np.isfinite(p)]
    interval = stats.binomtest(int((p < 0.05).sum()), len(p)).proportion_ci()
    covered = [row["low"] <= 0 <= row["high"] for row in rows if np.isfinite(row["p"])]
    found = {
        "n": len(p),
        "below": float((p < 0.05).mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "uniform_p": float(stats.kstest(p, "uniform").pvalue),
        "covered": float(np.mean(covered)),
        "mean_worth": float(np.mean([row["worth"] for row in rows if np.isfinite(row["p"])])),
    }
    print({key: round(value, 3) for key, value in found.items()}, flush=True)
    return found


def null(args: argparse.Namespace) -> dict[str, Any]:
    """Judge random columns."""
    return draws("null", {name: (file, None) for name, file in NULL.items()}, args.draws)


def adjusted(args: argparse.Namespace) -> dict[str, Any]:
    """Judge random columns in addition to a true batch."""
    return draws("adjusted", dict(ADJUSTED), args.draws)


def true(args: argparse.Namespace) -> dict[str, Any]:
    """Judge batches and conditions of real data, each alone."""
    path = RESULTS / "covariates.json"
    known = json.loads(path.read_text()).get("true", {"rows": []})["rows"] if path.exists() else []
    before = {(row["set"], row["covariate"]): row for row in known}
    rows = []
    for name, file, column in TRUE:
        if args.sets and name not in args.sets:
            rows += [before[name, column]] if (name, column) in before else []
            continue
        (found,) = judged(cells_of(file, 1_000, args.cells, (column,)), column, 0)
        rows.append({"set": name, **found})
        print(
            f"{name:<16}{column:<12}{found['n_categories']:>3} {found['worth']:>8.2f} ({found['low']:.2f} to {found['high']:.2f}) "
            f"p {found['p']:.3f}, {found['n_compared']} cells, {100 * found['seconds_worth'] / found['seconds']:.1f} % of the time",
            flush=True,
        )
    return {"rows": rows}


def confounded(args: argparse.Namespace) -> dict[str, Any]:
    """Correct kang for batches that hold mostly one condition; how far does the condition vanish from the latent space?"""
    from sklearn.neighbors import NearestNeighbors

    import vxpress as vx

    adata = cells_of("kang_ifnb", 500, 2_000, ("condition",))
    condition = adata.obs["condition"].astype("category").cat.codes.to_numpy()
    rows = []
    for share in (None, *SHARES):
        rng = np.random.default_rng(0)
        own = rng.random(adata.n_obs) < (share or 0.0)
        # four batches for each condition
        adata.obs["lane"] = (4 * np.where(own, condition, 1 - condition) + rng.integers(0, 4, adata.n_obs)).astype(str)
        options = vx.tl.FitOptions(screen_covariates=False)
        vx.tl.fit_vae(adata, "lane" if share else None, denoised=False, device="cpu", options=options)
        if share:
            vx.tl.diagnose(adata, gaps=False, biology_keys=["condition"])
        neighbors = NearestNeighbors(n_neighbors=31).fit(adata.obsm["X_vae"]).kneighbors(return_distance=False)
        same = float((condition[neighbors[:, 1:]] == condition[:, None]).mean())
        record = adata.uns["vae"]["diagnostics"].get("covariates")
        rows.append({"share": share, "association": float(record["association"][0]) if share else None, "same": same})
        print(rows[-1], flush=True)
    return {"rows": rows}


PARTS = {"null": null, "adjusted": adjusted, "true": true, "confounded": confounded}


def main() -> None:
    """Run the parts and write ``results/covariates.json``; parts that are not run are kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--draws", type=int, default=14, help="draws for each data set and kind of column")
    parser.add_argument("--sets", nargs="+", help="data sets of --only true; rows of others are kept")
    parser.add_argument("--cells", type=int, default=6_000, help="cells of a data set with a true batch, at most")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sc.settings.verbosity = 0
    set_threads(args.threads)
    for part in args.only:
        found = PARTS[part](args)
        print(f"written to {save('covariates', {part: found})}", flush=True)


if __name__ == "__main__":
    main()
