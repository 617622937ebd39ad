"""A training with two processes: what they agree on, and what one process would have found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vxpress.core.parallel import SINGLE

from ._core import CONFIGS, N_CELLS, N_VALIDATION, STOP, trainings
from ._launch import torchrun

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Results of both processes, by the name of the settings."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    status, output = torchrun("_core.py", "results", folder)
    assert status == 0, output
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    return first, second


@pytest.mark.parametrize("name", [*CONFIGS, "by block", "continued"])
def test_both_processes_end_with_the_same_bits(both: tuple[Results, Results], name: str) -> None:
    first, second = both[0][name], both[1][name]
    assert str(first["outcome"]) == str(second["outcome"])
    assert list(first["model"]) == list(second["model"])
    assert all(torch.equal(value, second["model"][key]) for key, value in first["model"].items())


@pytest.mark.parametrize("name", [*CONFIGS, "by block"])
def test_an_epoch_counts_every_training_cell_once(both: tuple[Results, Results], name: str) -> None:
    assert both[0][name]["n_cells"] == N_CELLS - N_VALIDATION


@pytest.mark.parametrize("name", list(CONFIGS))
def test_held_out_cells_gain_as_much_as_with_one_process(both: tuple[Results, Results], name: str) -> None:
    alone = trainings(name, SINGLE)
    alone.run()
    expected, found = (
        outcome["history"]["elbo_validation"] for outcome in (alone.outcome.state_dict(), both[0][name]["outcome"])
    )
    gain = expected[-1] - expected[0]
    assert gain > 0.5
    assert found[-1] - found[0] == pytest.approx(gain, abs=0.5 * gain)


def test_a_training_that_was_stopped_continues_with_the_same_bits(both: tuple[Results, Results]) -> None:
    whole, continued = both[0]["default"], both[0]["continued"]
    assert str(whole["outcome"]) == str(continued["outcome"])
    assert all(torch.equal(value, continued["model"][key]) for key, value in whole["model"].items())


@pytest.mark.parametrize("name", ["default", "ahead"])
def test_a_signal_to_one_process_stores_a_checkpoint_of_all_from_which_they_continue(
    both: tuple[Results, Results], name: str
) -> None:
    whole = both[0][name]
    for rank, results in enumerate(both):
        found = results[f"stopped {name}"]
        assert str(found["outcome"]) == str(whole["outcome"])
        assert all(torch.equal(value, found["model"][key]) for key, value in whole["model"].items())
        # at the step after the signal
        assert found["stopped"] == [143, STOP + 1, int(rank == 0)]


def test_noise_differs_between_processes(both: tuple[Results, Results]) -> None:
    assert not torch.equal(both[0]["continued"]["noise"], both[1]["continued"]["noise"])


@pytest.mark.parametrize("accident", ["dies", "hangs"])
def test_a_process_that_is_lost_ends_the_others_with_its_name(tmp_path: Path, accident: str) -> None:
    status, output = torchrun("_core.py", accident, tmp_path, VXPRESS_RANK_TIMEOUT="3")
    seconds = time.time() - float((tmp_path / "happened").read_text())
    assert status != 0
    if accident == "hangs":
        assert "Process 1 of 2" in output
        assert "neither worked nor waited for the others for 3 s" in output
    # with the patience of 3 seconds; it is 25 by default
    assert seconds < 35
