"""The public names: all documented, and called as scanpy's are."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import vxpress as vx

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
MODULES = {"pp": vx.pp, "tl": vx.tl, "pl": vx.pl, "datasets": vx.datasets, "metrics": vx.metrics, "extend": vx.extend}
MODULES |= {"io": vx.io}
NAMES = [f"{module}.{name}" for module, found in MODULES.items() for name in found.__all__]
NAMES += [name for name in vx.__all__ if name not in MODULES]


def public(name: str) -> Any:
    module, _, rest = name.rpartition(".")
    return getattr(MODULES[module] if module else vx, rest)


CALLABLES = [name for name in NAMES if inspect.isfunction(public(name))]
SCANPY_LIKE = [name for name in CALLABLES if name.startswith(("pp.", "tl.", "pl."))]


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def test_there_are_names_to_test():
    assert {"tl.fit_vae", "pp.library_size", "pl.kl", "save_model", "load_model"} <= set(CALLABLES)


def test_the_reference_lists_every_public_name_and_no_other():
    listed = re.findall(r"^   ([a-z]\w*(?:\.\w+)?)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(NAMES)


# what is not about one AnnData names its first argument otherwise
FIRST = {"tl.evaluate_perturbation": "predicted", "tl.cell_eval_pair": "predicted", "pl.perturbation": "evaluation"}
FIRST |= {"pl.dose_response": "table"}


@pytest.mark.parametrize("name", SCANPY_LIKE)
def test_functions_are_called_as_those_of_scanpy(name):
    function = public(name)
    first, *rest = parameters(function)
    assert first.name == FIRST.get(name, "adata")
    assert first.default is inspect.Parameter.empty
    positional = [p for p in rest if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) < 3
    assert not [p.name for p in positional if isinstance(p.default, bool) or "bool" in str(p.annotation)]
    assert {p.kind for p in rest if p not in positional} <= {
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    }


# what is not about the cells of adata comes as an AnnData of its own, and nothing is written
RETURNING = dict.fromkeys(("tl.generate", "tl.interpolate", "tl.predict_perturbation"), "AnnData")
RETURNING |= {"tl.evaluate_perturbation": "PerturbationEvaluation", "tl.cell_eval_pair": "tuple[AnnData, AnnData]"}
RETURNING |= {"tl.dose_response": "pd.DataFrame"}


@pytest.mark.parametrize("name", SCANPY_LIKE)
def test_whether_to_copy_is_said_as_in_scanpy(name):
    function = public(name)
    copy = inspect.signature(function).parameters.get("copy")
    assert (copy is not None) == (not name.startswith("pl.") and name not in RETURNING)
    if name in RETURNING:
        assert function.__annotations__["return"] == RETURNING[name]
    if copy is not None:
        assert copy.kind is inspect.Parameter.KEYWORD_ONLY
        assert copy.default is False
        several = "modality" in inspect.signature(function).parameters
        assert function.__annotations__["return"] == ("AnnData | MuData | None" if several else "AnnData | None")


@pytest.mark.parametrize("name", [name for name in NAMES if name in CALLABLES or name == "tl.FitOptions"])
def test_docstrings_document_every_parameter(name):
    documented = inspect.getdoc(public(name)) or ""
    assert documented
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", documented, flags=re.MULTILINE | re.DOTALL)
    # entries begin at the margin; several may share one
    entries = [] if section is None else re.findall(r"^\S.*$", section[1], flags=re.MULTILINE)
    found = [part.strip().lstrip("*") for entry in entries for part in entry.split(" : ")[0].split(",")]
    assert found == [p.name for p in parameters(public(name))]


def test_the_package_alone_imports_neither_torch_nor_scanpy():
    code = (
        "import sys, vxpress; print(*sorted({'torch', 'scanpy', 'anndata', 'matplotlib', 'mudata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_can_read_every_type(name):
    """An annotation that cannot be evaluated is printed without links."""
    for annotation in get_type_hints(public(name)).values():
        assert "ForwardRef" not in repr(annotation)


def test_the_functions_of_anndata_do_not_import_mudata():
    code = "import sys, vxpress as vx; vx.tl.fit_vae, vx.pp.neighbors, vx.pl.kl; print('mudata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False"]
