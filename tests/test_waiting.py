"""Idle threads sleep, unless somebody decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vxpress._waiting import DECIDED, SPIN_COUNT


def spin_count(code: str, **environment: str) -> str:
    """What ``GOMP_SPINCOUNT`` is in a new process that ran ``code``."""
    clean = {name: value for name, value in os.environ.items() if name not in DECIDED}
    code += "; import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_importing_asks_for_it():
    assert spin_count("import vxpress") == SPIN_COUNT


@pytest.mark.parametrize(
    ("environment", "expected"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_what_the_user_set_stays(environment: dict[str, str], expected: str):
    assert spin_count("import vxpress", **environment) == expected


def test_torch_that_is_there_already_has_read_its_own():
    assert spin_count("import torch, vxpress") == "None"
