"""What benchmarks and scripts take from the package exists; nothing else runs them in a test."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


def _taken(text: str) -> list[tuple[str, str]]:
    """Return modules of the package and the names that are imported from them."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, node) for node in nodes if node.module and node.module.split(".")[0] == "vxpress"]
    return [(module, alias.name) for module, node in ours for alias in node.names]


def _exists(module: str, name: str) -> bool:
    found = importlib.import_module(module)
    return hasattr(found, name) or (hasattr(found, "__path__") and find_spec(f"{module}.{name}") is not None)


@pytest.mark.skipif(not FILES, reason="the source archive holds neither benchmarks nor scripts")
def test_imports_of_benchmarks_and_scripts_exist() -> None:
    taken = {(module, name, path) for path in FILES for module, name in _taken(path.read_text(encoding="utf-8"))}
    assert len(taken) > 20
    missing = [f"{path.name}: {module}.{name}" for module, name, path in sorted(taken) if not _exists(module, name)]
    assert missing == []
