"""The tables of the documentation are those of ``benchmarks/results``, and every one says how old it is."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "pages.py").exists():
    pytest.skip("benchmarks and docs are part of the repository, not of the package", allow_module_level=True)


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module("pages")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_pages_show_what_was_measured(pages):
    assert pages.faults() == []


def test_a_number_changed_by_hand_is_seen(pages, tmp_path):
    page = tmp_path / "likelihood.md"
    text = (pages.DOCS / "benchmarks" / "likelihood.md").read_text()
    gain = f"{pages.summary.gains()[0]['gain_%']:+.2f}"
    assert gain in text
    page.write_text(text.replace(gain, "+9.99", 1))
    assert pages.filled(page) == text
    assert pages.filled(page) != page.read_text()


def test_a_table_without_code_needs_a_date(pages, tmp_path):
    page = tmp_path / "page.md"
    bare = "| a | b |\n|---|---|\n| 1 | 2 |\n"
    page.write_text(f"# Page\n\n{bare}\nSome prose.\n")
    assert pages.undated(page) == ["| a | b |"]
    page.write_text(f"# Page\n\n{bare}\n{{.measured}}\nMeasured once on 2026-01-31.\n")
    assert pages.undated(page) == []


@pytest.fixture
def versions(pages):
    return import_module("_versions")


def test_a_table_is_older_where_a_change_since_moves_its_numbers(versions):
    change, since = versions.CHANGES[0], versions.since
    kind = min(change.moves)
    before, after = versions.Version("2020-01-01T00:00:00+00:00", "", ""), versions.Version(change.date, "", "")
    assert change.what in since(before, [kind])
    assert change.what not in since(after, [kind])
    assert since(before, ["nothing of the kind"]) == []


def test_a_saved_result_carries_its_date_and_commit(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "VERSIONS", tmp_path / "versions.json")
    versions.stamp("speed", ["fit", "machine"])
    versions.stamp("speed", ["call"])
    found = versions.oldest([("speed", "fit"), ("speed", "call")])
    assert found.commit
    assert found.date <= versions.here().date
    with pytest.raises(KeyError):
        versions.oldest([("speed", "machine")])
