"""Compare distances between posteriors by neighbours that other molecules of the same cells confirm.

    python benchmarks/neighbors.py --sets paul15 cite kang_ctrl      # for choosing
    python benchmarks/neighbors.py                                   # reported

Half of the cells of a data set, drawn again for every seed, are fitted. Every molecule of the other cells is assigned to one
of two halves at random, and each half is encoded separately. The other cells are then scored, per distance:

- ``shared``: share of the neighbours that the two halves have in common. The halves share sequencing depth, so a distance
  that connects cells of similar depth, or makes some cells the neighbour of many, scores well without being better.
- ``molecules``: log-likelihood of a cell's second half, in nats per molecule, under the pooled first halves of its
  neighbours. These molecules neither selected the neighbours nor belong to them.
- ``label``: balanced accuracy of the majority of the neighbours (first half) for the cell type.
- ``purity``: share of the neighbours with the cell's type, mean over types.
- ``hub``: the largest number of cells that have the same cell among their neighbours, divided by k.
- ``halves``, ``types``: adjusted Rand index of Leiden clusters (scanpy's graph and its resolution of 1) with those of
  the other half, and with the cell types.

Then, for the chosen distance, whether ``vx.tl.cluster_stability`` on the first half identifies the cells that are in another
cluster in the second half (clusters are matched one to one by their overlap): area under the ROC curve, with draws,
with Euclidean draws, from one graph without draws, and by sequencing depth. Differences and areas have 95 % intervals over
seeds (Student's t). Fits are stored in ``benchmarks/cache``.
"""

from __future__ import annotations

import warnings
from argparse import ArgumentParser

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from _cache import FOLDER
from _sets import SETS, load
from _speed import save
from scipy import sparse, stats
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import vxpress as vx
from vxpress.bridge.ask.neighbors import FoundNeighbors
from vxpress.core.inference.nearest import edge_frequency, likelihood_of, nearest

Posterior = tuple[np.ndarray, np.ndarray]
Found = tuple[np.ndarray, np.ndarray]


def prepare(name: str, seed: int) -> tuple[ad.AnnData, ad.AnnData, ad.AnnData]:
    """Return the cells to fit, and the others twice: with each half of their molecules."""
    parts = load(name)
    cells = ad.concat(parts, merge="same")
    cells.obs = cells.obs[[c for c in ("batch", SETS[name].labels) if c in cells.obs]]
    rng = np.random.default_rng(seed)
    order = rng.permutation(cells.n_obs)
    n_fit = cells.n_obs // 2
    fit, test = cells[np.sort(order[:n_fit])].copy(), cells[np.sort(order[n_fit:])].copy()
    x = sparse.csr_matrix(test.X, dtype=np.float32)
    first = x.copy()
    first.data = rng.binomial(x.data.astype(np.int64), 0.5).astype(np.float32)
    second = x - first
    keep = np.flatnonzero((np.asarray(first.sum(1)).ravel() > 4) & (np.asarray(second.sum(1)).ravel() > 4))
    halves = []
    for half in (first, second):
        half.eliminate_zeros()
        halves.append(ad.AnnData(half[keep], obs=test.obs.iloc[keep].copy(), var=test.var[[]].copy()))
    return fit, halves[0], halves[1]


def posteriors(name: str, seed: int, data: tuple[ad.AnnData, ad.AnnData, ad.AnnData]) -> list[Posterior]:
    """Compute posterior mean and variance of both halves, or read them from the cache."""
    path = FOLDER / f"neighbors-{name}-{seed}.npz"
    if not path.exists():
        fit, *halves = data
        vx.tl.fit_vae(fit, "batch" if SETS[name].batch else None, rng=seed, denoised=False)
        out = {}
        for i, half in enumerate(halves):
            vx.tl.encode(half, fit)
            out |= {f"mean{i}": half.obsm["X_vae"], f"var{i}": half.obsm["X_vae_var"]}
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **out)
    with np.load(path) as stored:
        return [(stored[f"mean{i}"].astype(float), stored[f"var{i}"].astype(float)) for i in range(2)]


def of_matrix(squared_nn: np.ndarray, k: int) -> Found:
    """Find the k nearest other cells and their squared distances, nearest first."""
    np.fill_diagonal(squared_nn, np.inf)
    index_nk = np.argsort(squared_nn, axis=1, kind="stable")[:, :k]
    return index_nk, np.take_along_axis(squared_nn, index_nk, 1)


def squared(a_nd: np.ndarray) -> np.ndarray:
    norm_n = (a_nd**2).sum(1)
    return np.maximum(norm_n[:, None] + norm_n - 2 * a_nd @ a_nd.T, 0.0)


def pairwise(m: np.ndarray, v: np.ndarray, term) -> np.ndarray:
    """Sum ``term(m_i, v_i, m_j, v_j)`` over dimensions."""
    return sum(term(m[:, d, None], v[:, d, None], m[None, :, d], v[None, :, d]) for d in range(m.shape[1]))


def likelihood(m, v, k):
    return nearest(*likelihood_of(m, v), m, v, k, 0)


def without_own_variance(m, v, k):
    """Compute the likelihood distance as if all posteriors had the same variance."""
    return likelihood(m, np.tile(v.mean(0), (len(v), 1)), k)


def posterior_as_likelihood(m, v, k):
    """Compute the likelihood distance without removing the prior."""
    return nearest(m, 1 / v, m, v, k, 0)


def means(m, v, k):
    return of_matrix(squared(m), k)


def expected(m, v, k):
    return of_matrix(squared(m) + v.sum(1) + v.sum(1)[:, None], k)


def wasserstein(m, v, k):
    return of_matrix(squared(np.hstack([m, np.sqrt(v)])), k)


def noise_units(m, v, k):
    return of_matrix(squared(m / np.sqrt(v.mean(0))), k)


def bhattacharyya(m, v, k):
    return of_matrix(
        pairwise(m, v, lambda a, s, b, t: (a - b) ** 2 / (s + t) / 4 + np.log((s + t) / 2 / np.sqrt(s * t)) / 2), k
    )


def fisher_rao(m, v, k):
    def term(a, s, b, t):
        s, t = np.sqrt(s), np.sqrt(t)
        return 2 * np.arccosh(1 + ((a - b) ** 2 / 2 + (s - t) ** 2) / (2 * s * t)) ** 2

    return of_matrix(pairwise(m, v, term), k)


def correlation(m, v, k):
    c = m - m.mean(0)
    return of_matrix(squared(c / np.linalg.norm(c, axis=1, keepdims=True)), k)


def same_state(m, v, k):
    """Compute -2 log Bayes factor of one common state for both cells over one state each, drawn from those of all cells."""
    centre, spread = m.mean(0), np.sqrt(m.var(0) + v.mean(0))
    m, v = (m - centre) / spread, np.minimum(v / spread**2, 0.999)

    def term(a, s, b, t):
        p, q = 1 / s, 1 / t
        total = p + q - 1
        return -np.log(p * q / total) + p * a**2 + q * b**2 - (p * a + q * b) ** 2 / total

    d = pairwise(m, v, term)
    return of_matrix(d - d.min(), k)


DISTANCES = {
    f.__name__: f
    for f in (
        means,
        expected,
        wasserstein,
        noise_units,
        bhattacharyya,
        fisher_rao,
        correlation,
        same_state,
        posterior_as_likelihood,
        without_own_variance,
        likelihood,
    )
}


def leiden(found: Found) -> np.ndarray:
    """Compute Leiden clusters of scanpy's graph of these neighbours."""
    n = len(found[0])
    cells = ad.AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)), obsm={"X": np.zeros((n, 1))})
    sc.pp.neighbors(cells, found[0].shape[1] + 1, use_rep="X", transformer=FoundNeighbors(*found))
    sc.tl.leiden(cells, flavor="igraph", n_iterations=2)
    return cells.obs["leiden"].cat.codes.to_numpy()


def judge(first: Found, second: Found, halves: list[ad.AnnData], type_n: np.ndarray) -> dict[str, float]:
    """Compute every score of the neighbours found in the two halves; ``type_n`` is -1 if unknown."""
    a, b = first[0], second[0]
    n, k = a.shape
    graph, other = (sparse.csr_matrix((np.ones(n * k), i.ravel(), np.arange(0, n * k + 1, k)), (n, n)) for i in (a, b))
    x, y = (sparse.csr_matrix(half.X, dtype=np.float64) for half in halves)
    share_g = np.asarray(x.sum(0)).ravel() + 0.5
    share_g /= share_g.sum()
    pooled, prior = (graph @ x).tocsr(), 50.0  # weight of the mean profile in molecules
    y = y.tocoo()
    mean = (np.asarray(pooled[y.row, y.col]).ravel() + prior * share_g[y.col]) / (
        np.asarray(pooled.sum(1)).ravel()[y.row] + prior
    )
    molecules = np.bincount(y.row, y.data * np.log(mean), minlength=n) / np.bincount(y.row, y.data, minlength=n)
    n_types = type_n.max() + 1
    votes = np.stack([(type_n[a] == c).sum(1) for c in range(n_types)], axis=1)
    cells = [np.flatnonzero(type_n == c) for c in range(n_types)]
    known = type_n >= 0
    clusters = leiden(first)
    return {
        "shared": graph.multiply(other).sum() / (n * k),
        "molecules": molecules.mean(),
        "label": np.mean([(votes[rows].argmax(1) == c).mean() for c, rows in enumerate(cells)]),
        "purity": np.mean([votes[rows, c].sum() / max(votes[rows].sum(), 1) for c, rows in enumerate(cells)]),
        "hub": np.bincount(a.ravel(), minlength=n).max() / k,
        "halves": adjusted_rand_score(clusters, leiden(second)),
        "types": adjusted_rand_score(type_n[known], clusters[known]),
    }


def stability(q: list[Posterior], depth_n: np.ndarray, k: int, n_draws: int) -> dict[str, float]:
    """Compute areas under the ROC curve for cells that change cluster between the halves."""
    m, v = q[0]
    found = likelihood(m, v, k)
    before, after = leiden(found), leiden(likelihood(*q[1], k))
    overlap = pd.crosstab(before, after).to_numpy()
    rows, cols = linear_sum_assignment(-overlap)
    match = np.full(overlap.shape[1], -1)
    match[cols] = rows
    changed = match[after] != before
    n, weight_nd = len(m), likelihood_of(m, v)[1]
    graphs = {
        "draws": edge_frequency(m, v, weight_nd, k, n_draws, np.random.default_rng(0)),
        "euclidean": edge_frequency(m, v, np.ones_like(m), k, n_draws, np.random.default_rng(0)),
        "one graph": sparse.csr_matrix((np.ones(n * k), found[0].ravel(), np.arange(0, n * k + 1, k)), (n, n)),
    }
    out = {"changed": changed.mean()}
    for name, graph in graphs.items():
        cells = ad.AnnData(obs=pd.DataFrame({"leiden": before.astype(str)}, index=np.arange(n).astype(str)))
        cells = ad.AnnData(np.zeros((n, 1), np.float32), obs=cells.obs, obsp={"edge_frequency": graph})
        vx.tl.cluster_stability(cells)
        out[name] = roc_auc_score(changed, -cells.obs["leiden_stability"])
    out["depth"] = roc_auc_score(changed, -depth_n)
    return out


def interval(values) -> tuple[float, float]:
    """Compute the mean and half the width of its 95 % interval over seeds."""
    values = np.asarray(values)
    return values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)


def main() -> None:
    p = ArgumentParser(description=__doc__)
    p.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--n-neighbors", type=int, default=15)
    p.add_argument("--n-draws", type=int, default=20)
    p.add_argument("--distances", nargs="+", default=list(DISTANCES), choices=list(DISTANCES))
    args = p.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    k = args.n_neighbors - 1
    for name in args.sets:
        scores: dict[str, list[dict[str, float]]] = {which: [] for which in args.distances}
        areas = []
        for seed in args.seeds:
            data = prepare(name, seed)
            q, halves = posteriors(name, seed, data), list(data[1:])
            types = halves[0].obs[SETS[name].labels].astype("category").cat.remove_unused_categories()
            for which in args.distances:
                found = [DISTANCES[which](*half, k) for half in q]
                scores[which].append(judge(*found, halves, types.cat.codes.to_numpy().astype(int)))
            areas.append(stability(q, np.asarray(halves[0].X.sum(1)).ravel(), k, args.n_draws))
        print(f"\n{name}: {len(q[0][0])} cells in the last of {len(args.seeds)} splits; differences from means")
        out = {}
        for which, rows in scores.items():
            reference = scores.get("means", rows)
            out[which] = {
                c: interval([r[c] - (f[c] if which != "means" else 0) for r, f in zip(rows, reference, strict=True)])
                for c in rows[0]
            }
            print(f"{which:24s}" + "  ".join(f"{c} {m:+.4f} ±{h:.4f}" for c, (m, h) in out[which].items()), flush=True)
        area = {c: interval([r[c] for r in areas]) for c in areas[0]}
        area["draws - one graph"] = interval([r["draws"] - r["one graph"] for r in areas])
        print("stability               " + "  ".join(f"{c} {m:.3f} ±{h:.3f}" for c, (m, h) in area.items()), flush=True)
        save("neighbors", {name: {"seeds": args.seeds, "distances": out, "stability": area}})


if __name__ == "__main__":
    main()
