"""``vx.io.write_results``."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData
from scanpy import logging as logg

from vxpress._entry import entry
from vxpress.bridge.fits.open_files import as_path
from vxpress.bridge.fits.store_saving import save
from vxpress.bridge.read.adata import check_anndata


@entry
def write_results(adata: AnnData, path: str | Path | None = None, *, overwrite: bool = False) -> None:
    """Write an AnnData into the store that it was opened from, or to another file, completely or not at all.

    The store afterwards holds what ``adata`` holds: ``obs``, ``var``, ``uns`` and all matrices in memory are written. Matrices that are
    still on disk, such as ``X``, are not read or written again. What was deleted from ``adata`` is also deleted from the store.

    Parameters
    ----------
    adata
        AnnData opened with :func:`open_store` and ``mode="r+"``, or any other with ``path``.
    path
        File to write, ending in ``.h5ad`` or ``.zarr``. ``None`` is the store that ``adata`` was opened from. Another path gets a
        complete AnnData, also of a collection, with matrices copied in chunks.
    overwrite
        Whether to replace an existing ``path``.

    Raises
    ------
    FileExistsError
        If the path exists and ``overwrite`` is off.
    FileNotFoundError
        If the folder of the path does not exist.
    ValueError
        If ``path`` is None and ``adata`` was not opened from a store, or with ``mode="r"``; if ``adata`` has other cells than the
        store; if matrices of a lazy ``adata`` are read from ``path``; or if the path does not end in ``.h5ad`` or ``.zarr``.
    OSError
        If the store cannot be written, for example because the disk is full. It is then unchanged.

    See Also
    --------
    open_store : open a store without reading its matrices.

    Notes
    -----
    The new store is made next to the old one, and takes its place in one step when it is complete. If the process is killed at any
    moment, the old or the new one is there; the next call removes leftovers. Matrices of a zarr store that stay as they are take no
    additional space in the meantime. An ``.h5ad`` file is copied, so the disk needs room for both. Results of a collection are written
    into a group of their own next to its ``dataset_0``, ``dataset_1`` and so on, which do not change.

    Under torchrun, all processes may call it; the first one writes.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import vxpress as vx
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "pbmc.h5ad"
    >>> vx.datasets.pbmc68k_reduced().write_h5ad(path)
    >>> adata = vx.io.open_store(path, "r+")
    >>> vx.tl.fit_vae(adata, max_epochs=1)
    >>> vx.io.write_results(adata)
    >>> vx.io.open_store(path).obsm["X_vae"].shape
    (700, 20)
    """
    check_anndata(adata)
    start = logg.info("writing")
    target = save(adata, None if path is None else as_path("path", path), overwrite=overwrite)
    logg.info(f"    wrote {target}", time=start)
