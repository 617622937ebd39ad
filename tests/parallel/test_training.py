"""A training with two processes: what they agree on, and what one process would have found."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from vxpress.core.parallel import SINGLE

from ._core import CONFIGS, FURTHER, N_CELLS, N_VALIDATION, STOP, trainings
from ._launch import torchrun

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, float]:
    """Folder of the results of both processes, and status, output and time of the end."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    return folder, *torchrun("_core.py", folder), time.time()


@pytest.fixture(scope="module")
def both(launched: tuple[Path, int, str, float]) -> tuple[Results, Results]:
    """Results of both processes, by the name of the settings."""
    folder, _, output, _ = launched
    assert (folder / "happened").exists(), output
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    return first, second


@pytest.mark.parametrize("name", [*CONFIGS, *FURTHER, "continued"])
def test_both_processes_end_with_the_same_bits(both: tuple[Results, Results], name: str) -> None:
    first, second = both[0][name], both[1][name]
    assert str(first["outcome"]) == str(second["outcome"])
    assert list(first["model"]) == list(second["model"])
    assert all(torch.equal(value, second["model"][key]) for key, value in first["model"].items())


@pytest.mark.parametrize("name", [*CONFIGS, *FURTHER])
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


def test_the_form_of_the_step_on_a_gpu_takes_the_same_steps(both: tuple[Results, Results]) -> None:
    plain, form = both[0]["plain"], both[0]["form of a GPU"]
    assert str(plain["outcome"]) == str(form["outcome"])
    assert all(torch.equal(value, form["model"][key]) for key, value in plain["model"].items())


def test_a_process_that_dies_ends_the_others(launched: tuple[Path, int, str, float]) -> None:
    folder, status, output, ended = launched
    assert status != 0
    assert "exitcode  : 3" in output
    assert ended - float((folder / "happened").read_text()) < 30
