"""Calls of the command line."""

from __future__ import annotations

from pathlib import Path

from vxpress._cli import main

QUICK = ["--max-epochs", "2", "--n-latent", "3"]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fit(*arguments: str | Path) -> int:
    return main(["fit", *map(str, arguments)])
