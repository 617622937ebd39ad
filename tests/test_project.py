"""The project's own files agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".github").is_dir():
    pytest.skip("needs a checkout", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# closed vocabulary of github.com/scverse/ecosystem-packages, as far as it may concern this package
CATEGORIES = {"scRNA-seq", "Multimodal"}
TAGS = {
    "scRNA-seq",
    "bulk RNA-seq",
    "ATAC-seq",
    "multimodal",
    "preprocessing",
    "quality control",
    "denoising",
    "data integration",
    "cell-type annotation",
    "differential expression",
    "compositional analysis",
    "clustering",
    "dimensionality reduction",
    "trajectory inference",
    "perturbation",
    "visualization",
    "deep learning",
    "foundation model",
    "probabilistic modeling",
    "optimal transport",
    "GPU acceleration",
}


@pytest.fixture(scope="module")
def entry() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "docs" / "ecosystem" / "meta.yaml").read_text(encoding="utf-8"))


def test_the_entry_of_the_ecosystem_list_agrees_with_the_package(entry):
    project = PROJECT["project"]
    assert {"name", "description", "project_home", "documentation_home", "license", "tags"} < set(entry)
    assert entry["name"] == entry["install"]["pypi"] == project["name"]
    assert entry["license"] == project["license"]
    assert entry["project_home"] == project["urls"]["Source"]
    assert entry["documentation_home"] == project["urls"]["Documentation"]
    assert entry["tutorials_home"].startswith(project["urls"]["Documentation"])
    assert entry["category"] == "ecosystem"
    assert entry["primary_category"] in CATEGORIES
    assert 1 <= len(entry["tags"]) == len(set(entry["tags"])) <= 10
    assert set(entry["tags"]) <= TAGS


def test_one_version_everywhere_and_a_tag_that_is_another_is_refused():
    script = [sys.executable, str(ROOT / "scripts" / "check_version.py")]
    done = subprocess.run(script, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "")
    done = subprocess.run([*script, "v0.0.0"], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the tag is v0.0.0" in done.stderr


def test_every_supported_python_is_classified_and_tested():
    workflow = (ROOT / ".github" / "workflows" / "test.yaml").read_text(encoding="utf-8")
    matrix = re.search(r"^ *python: (\[.*\])$", workflow, flags=re.MULTILINE)
    assert matrix is not None
    tested = re.findall(r"3\.\d+", matrix[1])
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert tested == classified
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"


def test_actions_are_pinned_to_commits_with_their_version():
    uses = [
        line.strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    assert uses
    assert [line for line in uses if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


def test_workflows_and_the_local_run_call_checks_that_exist():
    script = (ROOT / "scripts" / "check.sh").read_text(encoding="utf-8")
    known = set(re.findall(r"^(\w+)\(\) \{", script, flags=re.MULTILINE)) - {"run_tests"} | {"test"}
    called = set()
    for path in (ROOT / ".readthedocs.yaml", *(ROOT / ".github" / "workflows").glob("*.yaml")):
        for words in re.findall(r"scripts/check\.sh ([a-z ]+)", path.read_text(encoding="utf-8")):
            called |= set(words.split())
    local = re.search(r"for name in ([a-z ]+); do", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert local is not None
    assert called <= known
    assert set(local[1].split()) <= known
    # what the local run checks, GitHub checks
    assert set(local[1].split()) <= called


def test_groups_are_the_extras():
    groups, extras = PROJECT["dependency-groups"], PROJECT["project"]["optional-dependencies"]
    for name, entries in groups.items():
        assert name in extras
        assert f"vxpress[{name}]" in entries
        assert all(isinstance(entry, dict) or entry == f"vxpress[{name}]" for entry in entries)


def test_the_design_page_lists_every_folder_and_every_module_outside_them() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = page.split("```text\n", 1)[1].split("```", 1)[0]
    package = ROOT / "src" / "vxpress"
    modules = {path.name for path in package.rglob("*.py")}
    folders = {path.name for path in package.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    named, named_folders = set(re.findall(r"\b\w+\.py\b", tree)), set(re.findall(r"\b(\w+)/", tree))
    assert named <= modules
    assert named_folders - {"src", "vxpress"} == folders
    loose = {path.name for place in (package, package / "bridge", package / "core") for path in place.glob("*.py")}
    assert loose - {"__init__.py", "__main__.py"} <= named
