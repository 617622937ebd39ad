"""Evaluate denoising by molecular cross-validation (Batson et al. 2019): predict held-out molecules.

    python benchmarks/denoising.py --sets pbmc3k kang pbmc_3studies --seeds 0 1 2

The molecules of every cell are split binomially, nine tenths for training and one tenth for testing. Genes are chosen on
the training molecules by Pearson residuals. A method turns training molecules into expected shares of the genes. These,
multiplied by the test library of the cell (its test molecules of those genes), are the expected test counts y^. Scores are
means over cells and genes; lower is better:

    poisson   y^ - y log y^
    sqrt      (E[sqrt(Y)] - sqrt(y))^2 with Y ~ Poisson(y^), as in the code of Batson et al.
    plain     (sqrt(y^) - sqrt(y))^2; not proper: at a mean of 0.1 the prediction 0 beats the truth

Methods: the training molecules themselves ("raw"), the mean of the nearest neighbours ("knn"), diffusion over scanpy's
graph with an adaptive kernel as in MAGIC ("diffusion"; van Dijk et al. 2018), scvi-tools at its defaults, and vxpress. raw,
knn and diffusion are tuned for every data set and seed by a second split of the training molecules. Each is mixed with a
share of the mean profile, because otherwise the loss of a zero would be infinite. scvi-tools and vxpress receive the batch,
decode each cell under its own batch, and average ten posterior draws; they are not tuned. vxpress is scored with and without
the cell's own counts (``vx.tl.denoise(own_counts=True)``), and averaged over batches, as in the layer that a fit writes.

Fits are stored in ``--out``, so that an interrupted run continues. Intervals are over cells, with the difference of each
cell to ``--reference`` averaged over seeds. The table also gives the range of the mean difference over seeds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from _cache import FOLDER
from _sets import DATA, SETS
from _speed import save, set_threads
from scipy import sparse, stats

import vxpress as vx

TRAIN_SHARE = 0.9
N_PCS = 30
DRAWS = 10
MIXED_IN = (0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
NEIGHBORS = (5, 10, 15, 30, 60, 100)
STEPS = (1, 2, 3, 5, 8)
SCORES = ("poisson", "sqrt", "plain")
OURS = "vxpress"
# grid for E[sqrt(Y)]
ROOTS = np.linspace(0, 40, 4001)

Shares = np.ndarray


def split_molecules(x: sparse.csr_matrix, share: float, rng: np.random.Generator) -> tuple[sparse.csr_matrix, ...]:
    """Split the molecules into a ``share`` and the rest, and return the counts of both."""
    train, test = x.copy(), x.copy()
    train.data = rng.binomial(x.data.astype(np.int64), share).astype(np.float32)
    test.data = x.data - train.data
    for part in (train, test):
        part.eliminate_zeros()
    return train, test


def load(name: str, seed: int, n_cells: int, n_genes: int) -> tuple[ad.AnnData, sparse.csr_matrix]:
    """Return training molecules with their batches, and test molecules; the same cells for every seed."""
    which = SETS[name]
    adata = ad.read_h5ad(DATA / f"{which.file}.h5ad")
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:n_cells])
    adata = adata[rows].copy()
    train, test = split_molecules(sparse.csr_matrix(adata.X), TRAIN_SHARE, np.random.default_rng([seed, 1]))
    out = ad.AnnData(train, obs=pd.DataFrame(index=adata.obs_names), var=adata.var[[]].copy())
    if which.batch is not None:
        out.obs["batch"] = adata.obs[which.batch].astype(str).astype("category")
    expressed = np.asarray((out.X > 0).sum(0)).ravel() >= 3
    out, test = out[:, expressed].copy(), test[:, expressed]
    sc.experimental.pp.highly_variable_genes(
        out,
        flavor="pearson_residuals",
        n_top_genes=min(n_genes, out.n_vars),
        batch_key="batch" if which.batch is not None else None,
        check_values=False,
    )
    chosen = out.var["highly_variable"].to_numpy()
    out, test = out[:, chosen].copy(), sparse.csr_matrix(test[:, chosen])
    kept = np.asarray(out.X.sum(1)).ravel() >= 5
    out, test = out[kept].copy(), test[kept]
    out.var = out.var[[]].copy()
    return out, test


def expected_root(mean: np.ndarray) -> np.ndarray:
    """Compute E[sqrt(Y)] of Poisson counts by linear interpolation between sums over the distribution."""
    counts = np.arange(4000)
    table = np.array([(stats.poisson.pmf(counts, root**2) * np.sqrt(counts)).sum() for root in ROOTS])
    return np.interp(np.sqrt(mean), ROOTS, table)


def score(shares: Shares, test: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Compute every score per cell, averaged over genes."""
    y = test.toarray().astype(np.float64)
    mean = shares.astype(np.float64) / shares.sum(1, keepdims=True, dtype=np.float64) * y.sum(1, keepdims=True)
    # a cell without test molecules has expected counts and loss of zero
    logs = np.log(mean, out=np.zeros_like(mean), where=y > 0)
    return {
        "poisson": (mean - y * logs).mean(1),
        "sqrt": np.square(expected_root(mean) - np.sqrt(y)).mean(1),
        "plain": np.square(np.sqrt(mean) - np.sqrt(y)).mean(1),
    }


def poisson(shares: Shares, test: sparse.csr_matrix) -> float:
    """Compute the mean Poisson loss; infinite if a molecule has a share of zero."""
    y = test.tocoo()
    with np.errstate(divide="ignore"):
        logs = np.log(shares[y.row, y.col] / shares.sum(1)[y.row] * np.asarray(test.sum(1)).ravel()[y.row])
    return float((y.data.sum() - (y.data * logs).sum()) / np.prod(test.shape))


def graphs(x: sparse.csr_matrix) -> Iterator[tuple[int, sparse.csr_matrix, sparse.csr_matrix]]:
    """Yield neighbours (0 or 1) and connectivities of scanpy's graphs of several sizes, from principal components of log counts."""
    adata = ad.AnnData(x.copy())
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=min(N_PCS, min(x.shape) - 1))
    for k in NEIGHBORS:
        # the kernel of MAGIC: Gaussian, with the width of each cell's neighbourhood
        sc.pp.neighbors(adata, n_neighbors=k, method="gauss")
        near = adata.obsp["distances"].copy()
        near.data[:] = 1.0
        yield k, sparse.csr_matrix(near), sparse.csr_matrix(adata.obsp["connectivities"])


def row_normalised(weights: sparse.csr_matrix) -> sparse.csr_matrix:
    """Divide rows by their sums."""
    return sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights


def candidates(x: sparse.csr_matrix) -> Iterator[tuple[str, tuple[object, ...], Shares]]:
    """Yield shares by every smoothing method with every setting except the share of the mean profile."""
    dense = x.toarray()
    library = dense.sum(1, keepdims=True)
    yield "raw", (), dense / library
    eye = sparse.identity(x.shape[0], format="csr")
    for k, near, weights in graphs(x):
        smoothed = (near + eye) @ dense
        yield "knn", (k,), smoothed / smoothed.sum(1, keepdims=True)
        step = row_normalised(weights + sparse.diags(weights.max(axis=1).toarray().ravel()))
        for what, start in (("counts", dense), ("shares", dense / library)):
            values = start
            for t in range(1, max(STEPS) + 1):
                values = step @ values
                if t in STEPS:
                    yield "diffusion", (k, t, what), values / values.sum(1, keepdims=True)


def smoothers(x: sparse.csr_matrix, seed: int) -> dict[str, tuple[Shares, str]]:
    """Run every smoother at the settings that best predict a tenth of the training molecules; return shares and settings."""
    inner, held_out = split_molecules(x, TRAIN_SHARE, np.random.default_rng([seed, 2]))
    some = np.asarray(inner.sum(1)).ravel() > 0
    inner, held_out = inner[some], held_out[some]
    profile = np.asarray(inner.sum(0)).ravel() + 0.5
    best: dict[str, tuple[float, tuple[object, ...], float]] = {}
    for (name, setting, shares), mixed in product_of(candidates(inner), MIXED_IN):
        loss = poisson((1 - mixed) * shares + mixed * profile / profile.sum(), held_out)
        if name not in best or loss < best[name][0]:
            best[name] = (loss, setting, mixed)
    profile = np.asarray(x.sum(0)).ravel() + 0.5
    out = {}
    for name, setting, shares in candidates(x):
        if best[name][1] == setting:
            mixed = best[name][2]
            text = " ".join(map(str, (*setting, f"mixed {mixed:g}")))
            out[name] = ((1 - mixed) * shares + mixed * profile / profile.sum(), text)
    return out


def product_of(items: Iterator[tuple], others: tuple[float, ...]) -> Iterator[tuple[tuple, float]]:
    """Yield pairs without storing the items."""
    for item in items:
        yield from product((item,), others)


def peer(adata: ad.AnnData, seed: int, epochs: int) -> dict[str, tuple[Shares, str]]:
    """Fit scvi-tools at its defaults and decode each cell under its own batch."""
    import scvi

    scvi.settings.seed = seed
    adata = adata.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch" if "batch" in adata.obs else None)
    model = scvi.model.SCVI(adata)
    start = time.perf_counter()
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    seconds = time.perf_counter() - start
    shares = model.get_normalized_expression(n_samples=DRAWS, return_numpy=True)
    return {"scvi-tools": (shares, f"{epochs} epochs, {seconds:.0f} s")}


def ours(adata: ad.AnnData, seed: int, settings: dict[str, object]) -> dict[str, tuple[Shares, str]]:
    """Fit vxpress; decode each cell under its own batch and, with batches, averaged over all, as in the default layer."""
    adata = adata.copy()
    batch = "batch" if "batch" in adata.obs else None
    start = time.perf_counter()
    vx.tl.fit_vae(adata, batch, rng=seed, denoised=False, **settings)
    text = f"{time.perf_counter() - start:.0f} s"
    vx.tl.denoise(adata, transform_batch="observed", target_sum=1.0, key_added="own")
    out = {OURS: (adata.layers["own"], text)}
    vx.tl.denoise(adata, transform_batch="observed", target_sum=1.0, own_counts=True, key_added="updated")
    out[f"{OURS}, own counts"] = (adata.layers["updated"], text)
    if batch is not None:
        vx.tl.denoise(adata, target_sum=1.0, key_added="mean")
        out[f"{OURS}, mean over batches"] = (adata.layers["mean"], text)
    return out


def kept(path: Path, make: Callable[[], dict[str, tuple[Shares, str]]], test: sparse.csr_matrix) -> pd.DataFrame:
    """Read scores per method and cell from the file, or compute and write them."""
    if not path.exists():
        rows = []
        for method, (shares, text) in make().items():
            found = score(shares, test)
            rows.append(pd.DataFrame(found).assign(method=method, setting=text, cell=np.arange(test.shape[0])))
            print(
                path.stem,
                method,
                text,
                {name: round(float(value.mean()), 5) for name, value in found.items()},
                flush=True,
            )
        pd.concat(rows).to_csv(path, index=False)
    return pd.read_csv(path)


def summary(scores: pd.DataFrame, reference: str) -> list[dict[str, object]]:
    """Average per data set, score and method, with the difference from the reference in percent of the reference."""
    out: list[dict[str, object]] = []
    for (name, what), part in scores.melt(
        ["set", "seed", "method", "cell"], list(SCORES), var_name="score", value_name="loss"
    ).groupby(["set", "score"]):
        table = part.pivot_table(index=["cell", "seed"], columns="method", values="loss")
        unit = 100 / table[reference].mean()
        for method in table:
            difference = (table[method] - table[reference]) * unit
            by_cell, by_seed = difference.groupby("cell").mean(), difference.groupby("seed").mean()
            half = 1.96 * by_cell.std(ddof=1) / np.sqrt(len(by_cell))
            mean = difference.mean()
            out.append({
                "set": name, "score": what, "method": method, "loss": table[method].mean(), "above_%": mean,
                "low_%": mean - half, "high_%": mean + half, "least_seed_%": by_seed.min(), "most_seed_%": by_seed.max(),
            })  # fmt: skip
    return out


def main() -> None:
    """Fit and score all methods, print a table and write ``results/denoising.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=1_000)
    parser.add_argument("--methods", nargs="+", default=["smoothers", "vxpress", "scvi-tools"])
    parser.add_argument("--scvi-epochs", type=int, default=400)
    parser.add_argument("--reference", default=f"{OURS}, own counts", help="method that the others are compared with")
    parser.add_argument("--preset", default=None, help="preset of vxpress (default: none)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    set_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    variant = f"-{args.preset}" if args.preset else ""
    found = []
    for seed, name in product(args.seeds, args.sets):
        adata, test = load(name, seed, args.cells, args.genes)
        makers: dict[str, tuple[str, Callable[[], dict[str, tuple[Shares, str]]]]] = {
            "smoothers": ("", lambda a=adata, s=seed: smoothers(a.X, s)),
            "vxpress": (variant, lambda a=adata, s=seed: ours(a, s, {"preset": args.preset} if args.preset else {})),
            "scvi-tools": (f"-{args.scvi_epochs}", lambda a=adata, s=seed: peer(a, s, args.scvi_epochs)),
        }
        for method in args.methods:
            tag, make = makers[method]
            path = args.out / f"denoising-{method}{tag}-{name}-{seed}-{args.cells}-{args.genes}.csv"
            found.append(kept(path, make, test).assign(set=name, seed=seed))
    scores = pd.concat(found)
    if args.reference not in set(scores["method"]):
        print(f"no table: the reference {args.reference!r} is not among the methods")
        return
    table = pd.DataFrame(summary(scores, args.reference))
    with pd.option_context("display.width", 160):
        print(table.to_string(index=False, float_format="{:.4f}".format))
    settings = scores.groupby(["set", "seed", "method"])["setting"].first().reset_index().to_dict("records")
    asked = {name: value for name, value in vars(args).items() if name != "out"}
    print(f"written to {save('denoising', {'scores': table.to_dict('records'), 'settings': settings, **asked})}")


if __name__ == "__main__":
    main()
