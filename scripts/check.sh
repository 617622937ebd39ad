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
#     layers      what may import what: pl, tl, pp -> bridge -> metrics -> core, no circle, no AnnData in the core
#     hooks       the hooks of pre-commit that are no check of their own here
#     workflows   GitHub's workflows and forms, Dependabot, Read the Docs and CITATION.cff against their schemas; zizmor
#     types       mypy
#     docs        the documentation, warnings as errors, into docs/_build/html; tables as in benchmarks/results
#     notebooks   every tutorial from top to bottom, in an empty directory, files untouched
#     guides      the example of every guide, in an empty directory, figures untouched
#     package     the wheel and the source archive, into dist, with their metadata checked
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
    # more threads only wait for each other, spinning
    pip install -e ".[test]" && OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 pytest
}

tools() {
    python -m pip install -e ".[dev,docs,test]"
}

lint() {
    ruff check .
    ruff format --check .
}

layers() {
    lint-imports
}

hooks() {
    SKIP=ruff-check,ruff-format,mypy pre-commit run --all-files --show-diff-on-failure
}

workflows() {
    check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
    check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
    check-jsonschema --builtin-schema vendor.readthedocs .readthedocs.yaml
    check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
    zizmor --offline --quiet .github
}

types() {
    mypy
}

docs() {
    python benchmarks/pages.py --check
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

package() {
    rm -rf dist
    python -m build
    python -m twine check --strict dist/*
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
        install | demo | tools | lint | layers | hooks | workflows | types | docs | notebooks | guides | package | versions)
            "$name"
            ;;
        *)
            echo "scripts/check.sh: no check is called '$name'" >&2
            exit 2
            ;;
    esac
done
