"""Run notebooks from top to bottom, each with a fresh kernel in an empty directory.

python scripts/run_notebooks.py tutorials           # check that they run; files stay as they are
python scripts/run_notebooks.py tutorials --write   # keep the new outputs
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError


def execute(path: Path, timeout: int) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        # record_timing would change the file at every run
        client = NotebookClient(
            notebook, timeout=timeout, record_timing=False, resources={"metadata": {"path": directory}}
        )
        return client.execute()


def lacking_data(path: Path) -> list[str]:
    """The files of real cells that a notebook names in its metadata and that are not in $VXPRESS_DATA, or in ../shared/data."""
    names = nbformat.read(path, as_version=4).metadata.get("vxpress", {}).get("data", [])
    folder = Path(os.environ.setdefault("VXPRESS_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data")))
    return [name for name in names if not (folder / name).exists()]


def drop_stderr(notebook: nbformat.NotebookNode) -> None:
    """Leave out what libraries log: it names folders of the machine it ran on."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]


def main() -> int:
    """Run them all; the exit status says whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="notebooks, or directories of notebooks")
    parser.add_argument("--timeout", type=int, default=900, help="seconds a cell may take (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the files")
    arguments = parser.parse_args()

    notebooks = [n for path in arguments.paths for n in (sorted(path.glob("*.ipynb")) if path.is_dir() else [path])]
    failed, n_skipped = [], 0
    for path in notebooks:
        start = time.perf_counter()
        if lacking := lacking_data(path):
            print(f"{path}: skipped, {', '.join(lacking)} is not in $VXPRESS_DATA", flush=True)
            n_skipped += 1
            continue
        try:
            notebook = execute(path, arguments.timeout)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"{path}: failed after {time.perf_counter() - start:.0f} s\n{error}", flush=True)
            failed.append(path)
            continue
        print(f"{path}: ran in {time.perf_counter() - start:.0f} s", flush=True)
        if arguments.write:
            drop_stderr(notebook)
            nbformat.write(notebook, path)
    print(f"{len(notebooks) - len(failed) - n_skipped} of {len(notebooks)} notebooks ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
