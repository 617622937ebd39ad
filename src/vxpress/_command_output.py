"""What the commands print about a fit, and how they write its file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def was_interrupted(stored: Any) -> bool:
    """Return whether Ctrl-C ended the training, so that the fit is the best state so far."""
    return str(stored["params"]["stopped"]) == "interrupted"


def number_of_fits(stored: Any) -> tuple[int, int]:
    """Return how many fits are complete, and how many were requested."""
    # besides the further models, the record holds their settings
    return max(1, len(stored.get("ensemble", {}))), int(stored["params"].get("n_fits", 1))


def report(stored: Any, seconds: float) -> None:
    """Print a summary of the fit in two lines."""
    params, history = stored["params"], stored["history"]
    kept, n_epochs = int(params["best_epoch"]), len(history["elbo_train"])
    elbo = float(history["elbo_validation"][kept])
    # NaN without held-out cells
    held_out = f"; held-out ELBO {elbo:,.1f} nats per cell" if elbo == elbo else ""  # noqa: PLR0124
    print(f"fitted in {seconds:.0f} s: {n_epochs} epochs, kept epoch {kept + 1}{held_out}")
    print(str(stored["diagnostics"]["verdict"]))


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise unless the output can be written; ``path`` may be the input."""
    if path.exists() and not overwrite:
        msg = f"{path} already exists. Choose another --output, or replace it with --overwrite."
        raise FileExistsError(msg)
    if path.exists() and path.is_dir() != (path.suffix == ".zarr"):
        msg = f"{path} exists and is {'a folder' if path.is_dir() else 'a file'}, which {path.suffix} is not. Choose another --output."
        raise FileExistsError(msg)
    parent = path.resolve().parent
    if not parent.is_dir():
        msg = f"{parent} is not a folder. Create it first, or choose another --output."
        raise FileNotFoundError(msg)
    if not os.access(parent, os.W_OK | os.X_OK):
        msg = f"{parent} cannot be written to. Choose another --output."
        raise PermissionError(msg)


def write(adata: AnnData, path: Path, *, overwrite: bool) -> None:
    """Write next to ``path`` and move the result there, so that ``path`` is always the complete old or new file.

    On failure the incomplete file is removed, and an existing file is unchanged.
    """
    from vxpress._h5ad import nullable_strings, write_h5ad
    from vxpress._whole import flush, whole
    from vxpress.bridge.fits.store_writing import write_store
    from vxpress.bridge.read.opened import opened_from

    store = opened_from(adata)
    if store is not None:
        # matrices on disk are copied in chunks, or as links
        write_store(adata, path, store, check=lambda: check_target(path, overwrite=overwrite))
        return
    # the output may have been created during the fit
    with whole(path, check=lambda: check_target(path, overwrite=overwrite)) as new, nullable_strings():
        if new.suffix == ".zarr":
            adata.write_zarr(new)
        else:
            write_h5ad(adata, new)
            flush(new)
