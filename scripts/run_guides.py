"""Run the example of every guide and draw its figure.

A guide opens with Python blocks followed by an image.  The blocks in front of an image are run, in order and in one
namespace, and the figure they leave open is that image: what the page shows is what its code draws.

python scripts/run_guides.py docs/guides            # check that they run; figures stay as they are
python scripts/run_guides.py docs/guides --write    # draw the figures anew
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
# one thread: a fit with another number of threads differs in its last digits, and scanpy's neighbors change the number
for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")

CODE_OR_IMAGE = re.compile(
    r"^```python\n(?P<code>.*?)^```$|^!\[[^\]]*\]\((?P<image>[^)\s]+)\)|^:::\{figure\} (?P<figure>\S+)",
    flags=re.MULTILINE | re.DOTALL,
)


def steps(text: str) -> list[tuple[str, str]]:
    """The code in front of every image of a page, with the image: (code, path of the image)."""
    found, code = [], ""
    for match in CODE_OR_IMAGE.finditer(text):
        if match["code"] is not None:
            code += match["code"]
        else:
            found.append((code, match["image"] or match["figure"]))
            code = ""
    return found


def run(page: Path, *, write: bool) -> None:
    """Run one page in an empty directory; raise where it has no figure or its code draws none."""
    import matplotlib.pyplot as plt

    pairs = steps(page.read_text(encoding="utf-8"))
    if not pairs:
        msg = "the page has no figure after its code"
        raise ValueError(msg)
    namespace: dict[str, Any] = {}
    plt.show = lambda *_, **__: None
    for code, image in pairs:
        plt.close("all")
        with tempfile.TemporaryDirectory() as directory:
            before = Path.cwd()
            os.chdir(directory)
            try:
                exec(compile(code, str(page), "exec"), namespace)
            finally:
                os.chdir(before)
        if not plt.get_fignums():
            msg = f"the code in front of {image} leaves no figure open"
            raise ValueError(msg)
        if write:
            target = (page.parent / image).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            plt.gcf().savefig(target, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close("all")


def main() -> int:
    """Run them all; the exit status says whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="pages, or directories of pages")
    parser.add_argument("--write", action="store_true", help="keep the figures")
    arguments = parser.parse_args()

    pages = [p.resolve() for path in arguments.paths for p in (sorted(path.glob("*.md")) if path.is_dir() else [path])]
    failed = []
    for page in pages:
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                run(page, write=arguments.write)
        except Exception:  # noqa: BLE001 - whatever a page's code raises is reported, and the others run
            traceback.print_exc()
            failed.append(page)
        verb = "failed after" if page in failed else "ran in"
        print(f"{page.name}: {verb} {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{len(pages) - len(failed)} of {len(pages)} guides ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
