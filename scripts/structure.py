"""Print the structure of the package in numbers, for the table in docs/design.md.

python scripts/structure.py            # this checkout
python scripts/structure.py FOLDER     # another one, such as git worktree add FOLDER cfcf820
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path


def imports(tree: ast.AST, names: set[str], *, types: bool) -> Iterator[str]:
    """Yield what a module imports, also within its functions; ``types``: also imports for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif types or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from imports(node, names, types=types)


def asks(tree: ast.AST, name: str) -> bool:
    """Return whether a module reads an attribute of this name, other than to call it."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and id(node) not in called for node in ast.walk(tree)
    )


def largest_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the largest set of modules of which each imports, directly or not, every other."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            for name in graph.get(ahead.pop(), set()) - found:
                found.add(name)
                ahead.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    return max(([b for b in graph if b in reach[a] and a in reach[b]] for a in graph), key=len)


def main(root: Path) -> None:
    package = root / "src" / "vxpress"
    files = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    trees = {path: ast.parse(text) for path, text in files.items()}
    module = {
        path: ".".join(path.relative_to(root / "src").with_suffix("").parts).removesuffix(".__init__") for path in files
    }
    names = set(module.values())
    for part in (".", "core", "bridge", "tl"):
        inside = [text for path, text in files.items() if path.is_relative_to(package / part)]
        print(
            f"files and lines of {'the package' if part == '.' else part}: {len(inside)}, {sum(t.count(chr(10)) for t in inside):,}"
        )
    docs = sum(
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    print(f"of these lines, docstrings: {docs:,}")
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    print(f"files and lines of the tests: {len(tests)}, {sum(t.count(chr(10)) for t in tests):,}")
    folders = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in files}}
    for folder in sorted(folders, key=folders.__getitem__, reverse=True)[:3]:
        print(f"files in one folder: {folders[folder]} ({folder.relative_to(package)})")
    print(f"files above 400 lines: {sum(text.count(chr(10)) > 400 for text in files.values())}")
    for part in ("tl", "pl", "pp"):
        found = [text for path, text in files.items() if path.is_relative_to(package / part)]
        print(f"imports of the core in {part}: {sum(len(re.findall(r'from vxpress.core', text)) for text in found)}")
    for types in (True, False):
        graph = {module[path]: set(imports(tree, names, types=types)) & names for path, tree in trees.items()}
        circle = largest_circle({name: to - {name} for name, to in graph.items()})
        print(
            f"largest circle of modules{', with imports for types' if types else ''}: {len(circle)} {sorted(circle)[:3]}"
        )
    for what, name in (("library is latent", "latent_library"), ("location is a composition", "composition")):
        asking = sorted(str(path.relative_to(package)) for path, tree in trees.items() if asks(tree, name))
        print(f"files that ask whether the {what}: {len(asking)} {' '.join(asking)}")


main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1])
