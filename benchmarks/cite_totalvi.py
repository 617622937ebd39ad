"""Fit totalVI to the cells of the CITE-seq benchmark and store latent space, imputed proteins, intervals and seconds.

    python benchmarks/cite_totalvi.py --part report --seeds 0 1 2

Needs scvi-tools 1.5 and Python 3.12 or later. Writes ``cache/cite_totalvi_PART_SEED.npz``. Settings are the defaults of
scvi-tools. Proteins of hidden cells are decoded as in the batch that has proteins (``transform_batch``), with background, means of
25 draws, as in its tutorials. Intervals are quantiles of draws from the posterior predictive distribution, decoded in the same way.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from _cite import SHOWN, load

FOLDER = Path(__file__).parent / "cache"
N_DRAWS = 200


def fit(part: str, seed: int, threads: int) -> dict[str, np.ndarray]:
    """Fit once and return what is scored."""
    import scvi

    torch.set_num_threads(threads)
    data = load(part)
    adata = ad.AnnData(data.x.copy())
    adata.obs["batch"] = data.batch
    adata.obsm["protein"] = data.y_shown
    scvi.settings.seed = seed
    scvi.model.TOTALVI.setup_anndata(adata, batch_key="batch", protein_expression_obsm_key="protein")
    start, used = time.perf_counter(), time.process_time()
    model = scvi.model.TOTALVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    fitted = time.perf_counter() - start
    latent = model.get_latent_representation()
    encoded = time.perf_counter() - start
    imputed, foreground = (
        np.asarray(
            model.get_normalized_expression(
                transform_batch=SHOWN,
                n_samples=25,
                include_protein_background=background,
                gene_list=[adata.var_names[0]],
            )[1]
        )
        for background in (True, False)
    )
    seconds, of_processor = time.perf_counter() - start, time.process_time() - used
    lower, upper, expected_log = predictive(model, adata, np.flatnonzero(data.hidden_n))
    return {
        "seconds": np.array(seconds),
        "seconds_processor": np.array(of_processor),
        "seconds_fit": np.array(fitted),
        "seconds_encoded": np.array(encoded),
        "epochs": np.array(len(model.history["elbo_train"])),
        "latent": latent,
        "imputed": imputed,
        "foreground": foreground,
        "lower": lower,
        "upper": upper,
        "expected_log": expected_log,
        "version": np.array(scvi.__version__),
    }


def predictive(model, adata: ad.AnnData, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return quantiles (5 % and 95 %) and the mean of log1p of draws of the proteins of some cells, decoded as in the batch with them."""
    from scvi.distributions import NegativeBinomialMixture

    registry = model.adata_manager.get_state_registry("batch")
    code = list(registry.categorical_mapping).index(SHOWN)
    module, draws, logs = model.module.eval(), [], []
    loader = model._make_data_loader(adata=adata, indices=rows, batch_size=512)
    with torch.no_grad():
        for tensors in loader:
            some = []
            for _ in range(N_DRAWS):
                _, out = module.forward(tensors, generative_kwargs={"transform_batch": code}, compute_loss=False)
                py = out["py_norm_"]
                mixture = NegativeBinomialMixture(
                    mu1=py["rate_back"], mu2=py["rate_fore"], theta1=py["r"], mixture_logits=py["mixing"]
                )
                some.append(mixture.sample().numpy())
            draws.append(np.quantile(np.stack(some), (0.05, 0.95), axis=0))
            logs.append(np.log1p(np.stack(some)).mean(0))
    lower, upper = np.concatenate(draws, axis=1)
    return lower, upper, np.concatenate(logs)


def main() -> None:
    """Fit every seed that is not in the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="report", choices=("tune", "report"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    FOLDER.mkdir(exist_ok=True)
    for seed in args.seeds:
        path = FOLDER / f"cite_totalvi_{args.part}_{seed}.npz"
        if not path.exists():
            found = fit(args.part, seed, args.threads)
            np.savez(path, **found)
            print(f"{path.name}: {float(found['seconds']):.0f} s", flush=True)


if __name__ == "__main__":
    main()
