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


def _bound(path: Path) -> set[str]:
    """Return the names that a file binds at its top level."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names


@pytest.mark.skipif(not FILES, reason="the source archive holds neither benchmarks nor scripts")
def test_what_benchmarks_take_from_each_other_exists() -> None:
    missing, n_seen = [], 0
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (module := node.module or "").startswith("_"):
                continue
            if module.startswith("__"):
                continue
            n_seen += 1
            folder = (ROOT / "benchmarks").joinpath(*module.split("."))
            known = {file.stem for file in folder.glob("*.py")}
            for file in (folder.with_suffix(".py"), folder / "__init__.py"):
                known |= _bound(file) if file.exists() else set()
            missing += [f"{path.name}: {module}.{alias.name}" for alias in node.names if alias.name not in known]
    assert n_seen > 20
    assert missing == []
