"""Names of the parts of an AnnData file, without reading the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vxpress._command_input import columns_of
from vxpress._stores import open_store


@dataclass(frozen=True)
class FileNames:
    """Columns of ``obs`` and ``var``, layers, and whether ``X`` exists."""

    obs: tuple[str, ...]
    var: tuple[str, ...]
    layers: tuple[str, ...]
    has_x: bool

    @classmethod
    def of(cls, path: Path) -> FileNames:
        """Read the names of a file; raises ``ValueError`` if it is not an AnnData."""
        try:
            with open_store(path) as root:
                return cls._read(root)
        except Exception as error:
            # errors of h5py and zarr on a damaged file have no common type
            msg = f"{path} cannot be read as an AnnData: {error}"
            raise ValueError(msg) from error

    @classmethod
    def _read(cls, root: Any) -> FileNames:
        from vxpress.bridge.read.opened import RESULTS, members

        groups = [root] if "obs" in root else [root[name] for name in members(root)]
        groups += [root[RESULTS]] if RESULTS in root else []
        if not groups:
            msg = "it holds no obs, and no dataset_0 and so on of a collection."
            raise ValueError(msg)
        layers = [tuple(map(str, group["layers"])) if "layers" in group else () for group in groups]
        return cls(
            columns_of([group["obs"] for group in groups]),
            columns_of([groups[0]["var"], groups[-1]["var"]]),
            tuple(dict.fromkeys(name for names in layers for name in names)),
            "X" in groups[0],
        )
