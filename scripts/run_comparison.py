"""Run one side of a page that shows the same analysis in two packages, on a data set of raw counts.

python scripts/run_comparison.py docs/coming_from_scvi_tools.md --side vxpress --data counts.h5ad
python scripts/run_comparison.py docs/coming_from_scvi_tools.md --side scvi-tools --data counts.h5ad --epochs 5
python scripts/run_comparison.py docs/coming_from_scanpy.md --side scanpy --data counts.h5ad

The data set needs ``obs["batch"]`` and ``obs["cell_type"]``.  The cells of its last batch are the query.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

TAB_OR_CODE = re.compile(
    r"^:::\{tab-item\} (?P<side>[^\n]+)$|^(?P<end>:::)$|^```python\n(?P<code>.*?)^```$", flags=re.M | re.S
)


def blocks(text: str, side: str) -> list[str]:
    """The code of a page that stands outside tabs or in those of one side, in order."""
    found, tab = [], None
    for match in TAB_OR_CODE.finditer(text):
        if match["side"]:
            tab = match["side"].strip()
        elif match["end"]:
            tab = None
        elif tab in (None, side):
            found.append(match["code"])
    return found


def main() -> int:
    """Run the side that was asked for, block by block."""
    import anndata

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="an .h5ad file of raw counts")
    parser.add_argument("--side", required=True, help="name of the tab")
    parser.add_argument("--cells", type=int, help="thin the cells out evenly to about this number")
    parser.add_argument("--epochs", type=int, help="epochs of scvi-tools, where its own default takes too long")
    arguments = parser.parse_args()

    codes = blocks(arguments.page.read_text(encoding="utf-8"), arguments.side)
    if not codes:
        parser.error(f"{arguments.page} has no code for {arguments.side!r}")
    adata = anndata.read_h5ad(arguments.data)
    adata = adata[adata.obs["cell_type"].notna()].copy()
    if arguments.cells is not None:
        adata = adata[:: max(1, adata.n_obs // arguments.cells)].copy()
    of_query = (adata.obs["batch"] == adata.obs["batch"].astype(str).max()).to_numpy()
    names: dict = {}
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        adata[~of_query].write_h5ad("counts.h5ad")
        adata[of_query].write_h5ad("query.h5ad")
        for code in codes:
            if arguments.epochs is not None:
                code = re.sub(r"\.train\((max_epochs=\d+, )?", f".train(max_epochs={arguments.epochs}, ", code)  # noqa: PLW2901
            print(code, flush=True)
            start = time.perf_counter()
            exec(compile(code, arguments.page.name, "exec"), names)
            print(f"# {time.perf_counter() - start:.1f} s\n", flush=True)
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
