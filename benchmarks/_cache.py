"""Store fits as files, so that an interrupted benchmark continues where it stopped."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _sets import SETS

FOLDER = Path(__file__).parent / "cache"


def parser(description: str) -> ArgumentParser:
    """Make a parser of the arguments that all fitting scripts share."""
    out = ArgumentParser(description=description)
    out.add_argument("--sets", nargs="+", default=[k for k, v in SETS.items() if v.purpose == "report"])
    out.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    out.add_argument("--threads", type=int, default=2)
    out.add_argument("--out", type=Path, default=FOLDER)
    return out


def fill(
    args: Namespace, prefix: str, variants: list[str], fit: Callable[[str, int, str, int], dict[str, np.ndarray]]
) -> None:
    """Fit every data set, variant and seed without a file by ``fit(set, seed, variant, threads)``."""
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name in args.sets:
            for variant in variants:
                path = args.out / f"{prefix}-{variant}-{name}-{seed}.npz"
                if path.exists():
                    continue
                result = fit(name, seed, variant, args.threads)
                np.savez_compressed(path, **result)
                elbo, iwae, seconds = (float(np.mean(result[k])) for k in ("elbo", "iwae", "seconds"))
                verdict = f"; {result['verdict']}" if "verdict" in result else ""
                print(f"{path.name}: {seconds:.0f} s, ELBO {elbo:.2f}, IWAE {iwae:.2f}{verdict}", flush=True)
