"""Do maps of the latent space move control cells to where treated cells are, on cells that were kept apart?

    python benchmarks/transport.py --threads 1
    python benchmarks/transport.py --cost --threads 1

Half of the control and of the treated cells of every type are for learning: the VAE (defaults, without the condition),
the maps and the axes of the scores. The others are for scoring: held-out control cells are moved, decoded, and drawn at their
own size factor, and compared with held-out treated cells. The floor compares the treated cells of both halves;
"treated cells, decoded" are the held-out treated cells drawn anew from the fit: what decoding alone costs. Maps are
learned per cell type, and once for all cells ("pooled"). Their settings were chosen on ``glioblastoma`` and on
``kang_ctrl`` with simulated responses.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time

import anndata as ad
import numpy as np
import scanpy as sc
import torch
from _perturbation import RESPONSES, cells_of
from _speed import RESULTS, machine, save, set_threads
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

METHODS = ("shift", "bures", "sinkhorn", "icnn", "flow_matching")
N_GENES, N_AXES, FEWEST = 2_000, 50, 40
# factors of the median distance, whose kernels are averaged
WIDTHS = (0.5, 1.0, 2.0)
SIZES = (10_000, 100_000)
N_LATENT = 20


def halves(name: str, seed: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Split the cells of every type and condition in two halves; genes are chosen on the first."""
    cells = cells_of(name)
    rng = np.random.default_rng(seed)
    first = np.zeros(cells.n_obs, dtype=bool)
    for rows in cells.obs.groupby(["group", "condition"], observed=True).indices.values():
        first[rng.permutation(rows)[: len(rows) // 2]] = True
    learn, held = cells[first].copy(), cells[~first].copy()
    sc.pp.filter_genes(learn, min_cells=3)
    if learn.n_vars > N_GENES:
        sc.experimental.pp.highly_variable_genes(learn, n_top_genes=N_GENES, check_values=False)
        learn = learn[:, learn.var["highly_variable"]].copy()
    held = held[:, learn.var_names].copy()
    parts = []
    for part in (learn, held):
        sc.pp.filter_cells(part, min_counts=5)
        parts.append(ad.AnnData(part.X, obs=part.obs[["group", "condition"]], var=part.var[[]]))
    return parts[0], parts[1]


def logged(x: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * x / np.maximum(x.sum(1, keepdims=True), 1.0))


def discrepancies(x_nd: np.ndarray, y_md: np.ndarray) -> dict[str, float]:
    """Energy distance and MMD with the pairs of a cell with itself: positive, so that ratios to the floor make sense."""
    n = len(x_nd)
    both = np.concatenate([x_nd, y_md])
    distance = cdist(both, both)
    median = np.median(distance[:n, n:])
    kernel = np.mean([np.exp(-0.5 * (distance / (width * median)) ** 2) for width in WIDTHS], axis=0)

    def contrast(a: np.ndarray) -> float:
        return float(a[:n, :n].mean() + a[n:, n:].mean() - 2.0 * a[:n, n:].mean())

    return {"energy": -contrast(distance), "mmd": contrast(kernel)}


def scores(
    drawn: np.ndarray, z: np.ndarray, real: np.ndarray, z_real: np.ndarray, pca: PCA, n: int, seed: int
) -> dict[str, float]:
    """Compare n cells with n real ones; variances use all of them."""
    rng = np.random.default_rng([seed, 7])
    one, other = (rng.permutation(len(x))[:n] for x in (drawn, real))
    found = {f"{k} latent": v for k, v in discrepancies(z[one], z_real[other]).items()}
    found |= {f"{k} counts": v for k, v in discrepancies(pca.transform(drawn[one]), pca.transform(real[other])).items()}
    found["variance r2"] = float(np.corrcoef(drawn.var(0), real.var(0))[0, 1] ** 2)
    return found


class Draws:
    """Counts of cells at positions of the latent space: independent draws, and counts paired with the observed ones."""

    def __init__(self, fitted: ad.AnnData, control: ad.AnnData, z: np.ndarray, seed: int) -> None:
        from vxpress.bridge.fits.fit import Fit
        from vxpress.bridge.fits.query import read_query

        self.model = Fit.from_uns(fitted.uns["vae"]).model.eval()
        self.batch = read_query(control, Fit.from_uns(fitted.uns["vae"]), None).cells.batch(torch.arange(control.n_obs))
        self.z, self.seed = z, seed

    def at(self, z: np.ndarray):
        from vxpress.core.inference.paired import scaled

        point = {"z": torch.from_numpy(z.astype(np.float32))}
        return scaled(self.model, point, self.batch.covariates, self.batch.log_library_n1)

    def independent(self, z: np.ndarray) -> np.ndarray:
        return self.at(z).sample((), generator=torch.Generator().manual_seed(self.seed)).numpy()

    def paired(self, z: np.ndarray) -> np.ndarray:
        from vxpress.core.inference.paired import paired_counts

        level = torch.rand(
            self.batch.x_ng.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64
        )
        return paired_counts(self.batch.x_ng, self.at(self.z), self.at(z), level).numpy()


def one_seed(name: str, seed: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return the scores by scope ("per type", "pooled"), method and group."""
    import vxpress as vx
    from vxpress.core.maps import MAPS

    control = RESPONSES[name].control
    learn, held = halves(name, seed)
    vx.tl.fit_vae(learn, rng=seed, denoised=False, device="cpu")
    vx.tl.encode(held, learn)
    x = {part: logged(cells.X.toarray()) for part, cells in (("learn", learn), ("held", held))}
    z = {part: cells.obsm["X_vae"].astype(np.float64) for part, cells in (("learn", learn), ("held", held))}
    is_control = {
        part: (cells.obs["condition"] == control).to_numpy() for part, cells in (("learn", learn), ("held", held))
    }
    group = {part: cells.obs["group"].astype(str).to_numpy() for part, cells in (("learn", learn), ("held", held))}
    pca = PCA(N_AXES, random_state=0).fit(x["learn"])
    source = is_control["held"]
    z_source = z["held"][source]
    draws = Draws(learn, held[source].copy(), z_source, seed)
    treated = held[~source].copy()
    redrawn = logged(Draws(learn, treated, z["held"][~source], seed).independent(z["held"][~source]))
    names = sorted(set(group["learn"]))
    code = {part: torch.tensor([names.index(g) for g in group[part]]) for part in group}
    out: dict[str, dict[str, dict[str, dict[str, float]]]] = {"per type": {}, "pooled": {}}
    for scope, found in out.items():
        moved = {"control cells": z_source}
        for method in METHODS:
            made = MAPS[method]()
            codes = [None, None]
            if scope == "per type":
                codes = [code["learn"][is_control["learn"]], code["learn"][~is_control["learn"]]]
            made.fit(
                torch.from_numpy(z["learn"][is_control["learn"]]),
                torch.from_numpy(z["learn"][~is_control["learn"]]),
                *codes,
                torch.Generator().manual_seed(seed),
            )
            given = code["held"][torch.from_numpy(source)] if scope == "per type" else None
            moved[method] = made(torch.from_numpy(z_source), given).numpy()
        cells = {"treated cells, decoded": (redrawn, z["held"][~source])}
        for method, z_moved in moved.items():
            if method == "control cells":
                cells[method] = (x["held"][source], z_moved)
                continue
            cells[method] = (logged(draws.independent(z_moved)), z_moved)
            cells[f"{method}, paired"] = (logged(draws.paired(z_moved)), z_moved)
        groups = {"all": np.ones(held.n_obs, bool)}
        if scope == "per type":
            groups = {g: group["held"] == g for g in names}
        for which, chosen in groups.items():
            real = chosen & ~is_control["held"]
            again = ~is_control["learn"] & (np.ones(learn.n_obs, bool) if which == "all" else group["learn"] == which)
            n = min(int(k.sum()) for k in (real, again, chosen & source))
            if n < FEWEST:
                continue
            truth = (x["held"][real], z["held"][real], pca, n, seed)
            found.setdefault("floor", {})[which] = scores(x["learn"][again], z["learn"][again], *truth)
            for method, (drawn, position) in cells.items():
                rows = chosen[~source] if method == "treated cells, decoded" else chosen[source]
                found.setdefault(method, {})[which] = scores(drawn[rows], position[rows], *truth)
    return out


def cost(method: str, n: int, results: multiprocessing.Queue) -> None:
    """Measure seconds and additional memory of learning a map from n + n cells, and of moving n cells."""
    import ot  # noqa: F401

    from vxpress.core.maps import MAPS

    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, N_LATENT, generator=rng, dtype=torch.float64) for _ in range(2))
    y[:, 0] += 2.0 + torch.tanh(2.0 * y[:, 1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, processor = time.perf_counter(), time.process_time()
    made = MAPS[method]()
    made.fit(x, y, None, None, rng)
    made(x)
    results.put(
        {
            "seconds": time.perf_counter() - start,
            "processor": time.process_time() - processor,
            "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="kang")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="transport")
    args = parser.parse_args()
    set_threads(args.threads)
    if args.cost:
        found: dict[str, dict[str, dict[str, float]]] = {}
        spawn = multiprocessing.get_context("spawn")
        for method in METHODS:
            for n in SIZES:
                results = spawn.Queue()
                process = spawn.Process(target=cost, args=(method, n, results))
                process.start()
                found.setdefault(method, {})[str(n)] = results.get()
                process.join()
                print(method, n, found[method][str(n)], flush=True)
        save(
            args.out, {"cost": {"threads": args.threads, "n_latent": N_LATENT, "methods": found, "machine": machine()}}
        )
        return
    path = RESULTS / f"{args.out}.json"
    known = json.loads(path.read_text()).get(args.set, {}) if path.exists() else {}
    for seed in args.seeds:
        start = time.perf_counter()
        known[str(seed)] = one_seed(args.set, seed)
        print(args.set, seed, f"{time.perf_counter() - start:.0f} s", flush=True)
        save(args.out, {args.set: known})


if __name__ == "__main__":
    main()
