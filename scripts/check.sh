#!/usr/bin/env bash
# The checks of this project, each by its name, in the active environment.
#
#     scripts/check.sh NAME...
#
#     install     the package alone, as a user installs it
#     demo        `vxpress demo`, in an empty directory
#     test        the test command of the README: installs the package with its tests' needs, runs tests and doctests
#     tools       everything the checks below need
#     lint        ruff check, ruff format
#     types       mypy
#     docs        the documentation, warnings as errors, into docs/_build/html
#     notebooks   every tutorial from top to bottom, in an empty directory, files untouched
#     guides      the example of every guide, in an empty directory, figures untouched
#     versions    what is installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install() {
    python -m pip install .
}

demo() {
    local directory
    directory=$(mktemp -d)
    (cd "$directory" && vxpress demo)
    rm -rf "$directory"
}

# "test" would hide the shell's own
run_tests() {
    pip install -e ".[test]" && pytest
}

tools() {
    python -m pip install -e ".[dev,docs,test]"
}

lint() {
    ruff check .
    ruff format --check .
}

types() {
    mypy
}

docs() {
    # stubs of functions that no longer exist would be pages without a place
    rm -rf docs/generated docs/_build
    python -m sphinx -W --keep-going -q -b html docs docs/_build/html
    echo "docs/_build/html/index.html"
}

notebooks() {
    python scripts/run_notebooks.py tutorials
}

guides() {
    python scripts/run_guides.py docs/guides
}

versions() {
    python - <<'PYTHON'
import platform
from importlib.metadata import PackageNotFoundError, version

found = [f"python {platform.python_version()}"]
for name in ("torch", "anndata", "scanpy", "mudata", "zarr", "numpy", "scipy", "pandas", "scikit-learn", "pytest"):
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        found.append(f"{name} absent")
print(", ".join(found))
PYTHON
}

if [ $# -eq 0 ]; then
    sed -n '2,/^set/p' "${BASH_SOURCE[0]}" | grep '^#'
    exit 2
fi
for name in "$@"; do
    case $name in
        test) run_tests ;;
        install | demo | tools | lint | types | docs | notebooks | guides | versions) "$name" ;;
        *)
            echo "scripts/check.sh: no check is called '$name'" >&2
            exit 2
            ;;
    esac
done
