"""Measure the wall time to the final quality of scvi-tools.

    python benchmarks/time_to_elbo.py --sets pbmc3k kang pbmc_3studies

Both fit at their defaults in one run, in turn, with the same threads and the same cells held out for validation. States
are stored during training (with the clock stopped) and scored afterwards by ``_judge.py`` on test cells that neither has
seen. Three ratios: (a) the time of the whole fit of scvi-tools over that of vxpress to the same final ELBO; (b) the time of
scvi-tools when it first reached that value, over that of vxpress; (c) the same for the best value of scvi-tools. The time of
vxpress includes everything that ``fit_vae`` does before training; the time of the whole call, with latent space, denoising
and diagnostics, is also reported.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from _judge import judge
from _sets import SETS, load, split
from _speed import save, set_threads
from anndata import AnnData
from fit_ours import judge_fit

import vxpress as vx
from vxpress.bridge.fits.seal import sealed
from vxpress.bridge.fits.weights import stored_weights
from vxpress.core.training import Training

# trajectories are scored on some of the test cells, with few samples and fixed noise; vxpress at every fourth epoch
SAMPLES, JUDGED, EVERY = 10, 200, 4


class Clock:
    """Return the seconds since the start, without pauses."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def without(self, work: Callable[[], None]) -> None:
        """Pause the clock."""
        before = time.perf_counter()
        work()
        self.start += time.perf_counter() - before


def peer(adata: AnnData, test: AnnData, batch: str | None, seed: int, keep_every: float) -> dict[str, list[float]]:
    """Measure seconds and ELBO of scvi-tools during its fit; states are stored at every factor of ``keep_every`` in time."""
    import scvi
    from lightning.pytorch import Callback

    adata = adata.copy()
    train, validation = split(adata.n_obs)
    scvi.settings.seed = seed
    clock = Clock()
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch)
    model = scvi.model.SCVI(adata)
    seconds: list[float] = []
    states: list[dict] = []

    def keep() -> None:
        states.append(copy.deepcopy(model.module.state_dict()))

    class Keeper(Callback):
        def on_train_epoch_end(self, *_) -> None:
            now = clock.elapsed()
            if not seconds or now >= seconds[-1] * keep_every:
                seconds.append(now)
                clock.without(keep)

    model.train(
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        callbacks=[Keeper()],
        datasplitter_kwargs={"external_indexing": [train, validation, np.array([], dtype=int)]},
    )
    seconds.append(clock.elapsed())
    keep()
    batches = adata.obs["batch"].cat.categories if batch else ["all"]
    codes = batches.get_indexer(test.obs["batch"]) if batch else np.zeros(test.n_obs, dtype=int)
    library = torch.log(torch.from_numpy(np.asarray(test.X.sum(1), dtype=np.float32)))
    module = model.module.eval()

    def posterior(rows: np.ndarray):
        q = module.inference(torch.from_numpy(test.X[rows].toarray()), torch.from_numpy(codes[rows])[:, None])["qz"]
        return q.loc, q.scale

    def decoder(z: torch.Tensor, rows: np.ndarray):
        n = z.shape[0]
        index = torch.from_numpy(codes[rows])[:, None].repeat(n, 1)
        px = module.generative(z.reshape(-1, z.shape[-1]), library[rows].repeat(n, 1), index)["px"]
        shape = (n, len(rows), -1)
        return px.mu.reshape(shape), px.theta.expand_as(px.mu).reshape(shape), px.zi_logits.reshape(shape)

    elbo = []
    for state in states:
        module.load_state_dict(state)
        elbo.append(float(judge(test.X[:JUDGED], posterior, decoder, n_samples=SAMPLES).elbo_n.mean()))
    iwae = float(judge(test.X, posterior, decoder).iwae_n.mean())
    return {"seconds": seconds, "elbo": elbo, "iwae": [iwae]}


def ours(adata: AnnData, test: AnnData, batch: str | None, seed: int) -> dict[str, list[float]]:
    """Measure seconds and ELBO after every epoch of ``vx.tl.fit_vae`` at its defaults."""
    adata = adata.copy()
    seconds, states, epochs = [], [], []
    plain = Training.validate

    def validate(training):
        out = plain(training)
        epochs.append(None)
        if len(epochs) % EVERY:
            return out
        seconds.append(clock.elapsed())
        clock.without(lambda: states.append(stored_weights(training.model)))
        return out

    Training.validate = validate
    clock = Clock()
    try:
        vx.tl.fit_vae(adata, batch, rng=seed)
    finally:
        Training.validate = plain
    whole = clock.elapsed()
    iwae = float(judge_fit(adata, test)[0].iwae_n.mean())
    some = test[:JUDGED].copy()
    final, _ = judge_fit(adata, some, n_samples=SAMPLES)
    weights = adata.uns["vae"]["weights"]
    elbo = []
    for state in states:
        adata.uns["vae"] = sealed(adata.uns["vae"] | {"weights": {name: state[name] for name in weights}})
        elbo.append(float(judge_fit(adata, some, n_samples=SAMPLES)[0].elbo_n.mean()))
    # the call keeps the best of these states
    return {
        "seconds": [*seconds, whole],
        "elbo": [*elbo, float(final.elbo_n.mean())],
        "iwae": [iwae],
    }


def reached(run: dict[str, list[float]], value: float) -> float:
    """Return the first time at which a run was at least this good, or infinity."""
    return next((s for s, e in zip(run["seconds"], run["elbo"], strict=True) if e >= value), math.inf)


def questions(mine: dict[str, list[float]], peers: dict[str, list[float]]) -> dict[str, float]:
    """Compute the three ratios of times, scvi-tools over vxpress, and their terms."""
    final, best = peers["elbo"][-1], max(peers["elbo"])
    whole = peers["seconds"][-1]
    return {
        "peer_s": whole,
        "peer_final_elbo": final,
        "peer_best_elbo": best,
        "peer_iwae": peers["iwae"][0],
        "ours_s": mine["seconds"][-1],
        "ours_final_elbo": mine["elbo"][-1],
        "ours_iwae": mine["iwae"][0],
        "ours_to_final_s": reached(mine, final),
        "ours_to_best_s": reached(mine, best),
        "a": whole / reached(mine, final),
        "a_whole_call": whole / mine["seconds"][-1] if mine["elbo"][-1] >= final else 0.0,
        "b": reached(peers, final) / reached(mine, final),
        "c": reached(peers, best) / reached(mine, best),
    }


def main() -> None:
    """Print a row per data set, and write all runs as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--scvi-seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--keep-every", type=float, default=1.3, help="factor in time between stored states of scvi-tools"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows, runs = [], {}
    for name in args.sets:
        adata, test = load(name)
        batch = "batch" if SETS[name].batch else None
        warm = adata[:300].copy()
        vx.tl.fit_vae(warm, batch, max_epochs=1)
        # vxpress runs before and after the long run of scvi-tools, so that other load of the machine affects both
        found: dict[str, list] = {"ours": [], "peer": []}
        for i, seed in enumerate(args.seeds):
            set_threads(args.threads)
            found["ours"].append(ours(adata, test, batch, seed))
            if i < len(args.scvi_seeds):
                set_threads(args.threads)
                found["peer"].append(peer(adata, test, batch, args.scvi_seeds[i], args.keep_every))
        runs[name] = found
        for mine in found["ours"]:
            rows += [{"set": name} | questions(mine, other) for other in found["peer"]]
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format), flush=True)
    print(save("time_to_elbo", {"rows": rows, "runs": runs}))


if __name__ == "__main__":
    main()
