"""Checkpoints of ``fit_vae``: a fit that was stopped and continued equals one that was not, and what cannot be continued."""

from __future__ import annotations

import errno
import itertools
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import vxpress as vx
from vxpress.bridge.fits import checkpoints, sealed_file
from vxpress.bridge.health import cure
from vxpress.bridge.read import survey
from vxpress.core.data import Stored
from vxpress.core.training import Training

QUICK: dict[str, Any] = {"n_latent": 3, "n_hidden": 8, "max_epochs": 3, "batch_size": 64, "batch_key": "batch"}


def stop_after(n_steps: int, end: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``end`` at a step of a fit, counted over all of its trainings."""
    step, number = Training.step, itertools.count(1)

    def counted(training: Training, batch: Any) -> None:
        step(training, batch)
        if next(number) == n_steps:
            end()

    monkeypatch.setattr(Training, "step", counted)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the steps of all trainings within the block, by the length of a list."""
    step, taken = Training.step, list[int]()

    def counted(training: Training, batch: Any) -> None:
        taken.append(1)
        step(training, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", counted)
        yield taken


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def assert_same(found: ad.AnnData, expected: ad.AnnData, key: str = "vae") -> None:
    # of every setting, weight and number of the history
    assert found.uns[key]["sha256"] == expected.uns[key]["sha256"]
    assert list(found.obsm) == list(expected.obsm)
    for name in expected.obsm:
        np.testing.assert_array_equal(found.obsm[name], expected.obsm[name])
    # newer versions of anndata count X among them, as None
    for name in [name for name in expected.layers if name is not None]:
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])
    assert str(found.uns[key]["diagnostics"]) == str(expected.uns[key]["diagnostics"])


@pytest.fixture
def genes(adata: ad.AnnData) -> ad.AnnData:
    """Cells with genes outside the model, so that a fit has a readout."""
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 3 != 0
    return adata


# settings, and after which steps the fit is stopped; a training has 9
FITS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "one fit": ({}, (3, 5)),
    "two fits": ({"n_fits": 2}, (9, 17)),
    "both likelihoods": ({"likelihood": "auto"}, (11,)),
    "with a cure": ({"beta": 50.0, "cure": True}, (13,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FITS)
def test_a_fit_that_was_stopped_and_continued_equals_one_that_was_not(
    genes: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    further, steps = FITS[name]
    tried = cure.ladder
    monkeypatch.setattr(cure, "ladder", lambda n_train: tried(n_train)[:3])
    expected = genes.copy()
    with counting(monkeypatch) as taken:
        vx.tl.fit_vae(expected, **QUICK, **further)
    n_whole = len(taken)
    for n_steps in steps:
        folder = tmp_path / str(n_steps)
        found = genes.copy()
        with monkeypatch.context() as patch:
            stop_after(n_steps, terminate, patch)
            with pytest.raises(vx.tl.Stopped, match=r"stopped by SIGTERM.*with resume=True .* continues") as stopped:
                vx.tl.fit_vae(found, **QUICK, **further, checkpoint_dir=folder)
        assert stopped.value.code == 143
        assert "vae" not in found.uns
        with counting(monkeypatch) as left:
            vx.tl.fit_vae(found, **QUICK, **further, checkpoint_dir=folder, resume=True)
        assert_same(found, expected)
        # no step is taken twice
        assert len(left) == n_whole - n_steps


def test_a_fit_of_counts_on_disk_continues_without_reading_what_it_has_visited(
    genes: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "MEMORY_BYTES", 0)
    genes.write_h5ad(tmp_path / "cells.h5ad")
    expected, folder = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r").to_memory(), tmp_path / "checkpoints"

    def fit(into: ad.AnnData, **settings: Any) -> None:
        stored = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        vx.tl.fit_vae(stored, **QUICK, **settings)
        into.uns, into.obsm, into.layers = stored.uns, stored.obsm, stored.layers

    fit(expected)
    visited: list[int] = []
    batches = Stored.batches

    def noted(source: Stored, parts: list[Any]) -> Any:
        visited.append(len(parts))
        return batches(source, parts)

    with monkeypatch.context() as patch:
        stop_after(5, terminate, patch)
        with pytest.raises(vx.tl.Stopped):
            fit(genes, checkpoint_dir=folder)
    with monkeypatch.context() as patch:
        patch.setattr(Stored, "batches", noted)
        fit(genes, checkpoint_dir=folder, resume=True)
    assert_same(genes, expected)
    # the third step of the second epoch
    assert visited[0] == 1


def test_a_complete_fit_is_read_and_not_trained_again(
    genes: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = genes.copy()
    vx.tl.fit_vae(expected, **QUICK, n_fits=2, checkpoint_dir=tmp_path, resume="auto")
    monkeypatch.delattr(Training, "step")
    vx.tl.fit_vae(genes, **QUICK, n_fits=2, checkpoint_dir=tmp_path, resume="auto")
    assert_same(genes, expected)


@pytest.fixture(scope="module")
def _stopped(_simulated: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, terminate, patch)
        with pytest.raises(vx.tl.Stopped):
            vx.tl.fit_vae(_simulated.copy(), **QUICK, checkpoint_dir=folder)
    return folder


@pytest.fixture
def stopped(adata: ad.AnnData, _stopped: Path, tmp_path: Path) -> tuple[ad.AnnData, Path]:
    """Cells, and the folder with the checkpoint of a fit of them that was stopped in its second epoch."""
    return adata, Path(shutil.copytree(_stopped, tmp_path / "checkpoints"))


def _another_count(adata: ad.AnnData) -> None:
    place = adata.X.nonzero()
    adata.X[place[0][0], place[1][0]] -= 1


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        (_another_count, {}, "the sum of the counts of each gene differs"),
        (
            lambda adata: adata._inplace_subset_obs(slice(1, None)),
            {},
            "number of cells is 160 in the state and 159 here",
        ),
        (lambda adata: adata._inplace_subset_var(slice(1, None)), {}, "model.n_genes is 60 in the state and 59 here"),
        (lambda adata: None, {"n_latent": 4}, "model.n_latent is 3 in the state and 4 here"),
        (lambda adata: None, {"max_epochs": 9}, "training.max_epochs is 3 in the state and 9 here"),
        (lambda adata: None, {"rng": 1}, "seed is"),
        (lambda adata: None, {"split_rng": 1}, "the choice of training cells differs"),
        (lambda adata: None, {"batch_key": "donor"}, "model.n_categories is"),
    ],
)
def test_a_checkpoint_of_other_data_or_settings_is_refused(
    stopped: tuple[ad.AnnData, Path], change: Callable[[ad.AnnData], None], settings: dict[str, Any], named: str
) -> None:
    adata, folder = stopped
    stored = (folder / "training_1.safetensors").read_bytes()
    change(adata)
    with pytest.raises(ValueError, match="holds checkpoints of another fit") as error:
        vx.tl.fit_vae(adata, **(QUICK | settings), checkpoint_dir=folder, resume="auto")
    assert named in str(error.value)
    assert "choose another folder" in str(error.value)
    assert (folder / "training_1.safetensors").read_bytes() == stored
    assert "vae" not in adata.uns


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_checkpoint_is_refused(stopped: tuple[ad.AnnData, Path], share: float) -> None:
    adata, folder = stopped
    path = folder / "training_1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match=r"training_1.safetensors is not a checkpoint of vxpress, or is damaged.*remove that file"
    ):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=folder, resume="auto")


def test_a_changed_byte_anywhere_is_noticed(stopped: tuple[ad.AnnData, Path]) -> None:
    _, folder = stopped
    path = folder / "training_1.safetensors"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 20, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(bytes(changed))
        with pytest.raises(ValueError, match=r"is damaged|format version"):
            sealed_file.read_sealed(checkpoints.KIND, path)


def test_a_model_file_is_no_checkpoint(fitted: ad.AnnData, stopped: tuple[ad.AnnData, Path]) -> None:
    adata, folder = stopped
    vx.save_model(fitted, folder / "training_1.safetensors")
    with pytest.raises(ValueError, match="format version 1"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=folder, resume="auto")


def test_resume_says_what_it_needs(stopped: tuple[ad.AnnData, Path], tmp_path: Path) -> None:
    adata, folder = stopped
    with pytest.raises(FileExistsError, match=r"holds checkpoints of an earlier fit .*training_1.*resume='auto'"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=folder)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint. resume='auto' continues if there is one"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path / "none", resume=True)
    for settings, named in (
        ({"resume": True}, "pass checkpoint_dir="),
        ({"resume": "yes", "checkpoint_dir": folder}, "True, False or 'auto' is expected"),
        ({"resume": 1, "checkpoint_dir": folder}, "resume=1 was given"),
        ({"rng": None, "checkpoint_dir": folder, "resume": True}, "for example rng=0"),
        ({"checkpoint_minutes": -1, "checkpoint_dir": folder}, "checkpoint_minutes=-1 was given"),
        ({"checkpoint_minutes": "10"}, "checkpoint_minutes='10' was given"),
    ):
        with pytest.raises(ValueError, match=named):
            vx.tl.fit_vae(adata, **QUICK, **settings)
    with pytest.raises(TypeError, match="checkpoint_dir= takes a path"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=3)


def test_a_folder_that_cannot_be_written_to_is_an_error_before_the_data_are_read(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vxpress.bridge.fitting.prepare", lambda *_, **__: pytest.fail("the data were read"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"checkpoint_dir=.*cannot be written to: .*Choose a folder"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path / "file" / "folder")

    def read_only(path: Path, _: bytes) -> int:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    with pytest.raises(OSError, match="cannot be written to: Read-only file system"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path)


def test_two_fits_do_not_share_a_folder(adata: ad.AnnData, tmp_path: Path) -> None:
    asked = checkpoints.Checkpointing(tmp_path, 10.0, "auto")
    with checkpoints.stored_on_request(asked), pytest.raises(RuntimeError, match="is used by another fit"):
        vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path, resume="auto")
    vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path, resume="auto")


def test_a_full_disk_keeps_the_earlier_checkpoint_and_the_fit_goes_on(
    adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    expected = adata.copy()
    vx.tl.fit_vae(expected, **QUICK)
    path, write, number, kept = tmp_path / "training_1.safetensors", Path.write_bytes, itertools.count(1), []

    def full(self: Path, data: bytes) -> int:
        if self.name == path.name and 3 <= next(number) <= 9:
            kept.append(path.read_bytes())
            write(self, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path, checkpoint_minutes=0)
    assert_same(adata, expected)
    assert len(kept) == 7
    assert len(set(kept)) == 1
    assert sum("No space left on device" in message and "The fit continues" in message for message in warned) == 7
    # the last one could be written
    assert sorted(found.name for found in tmp_path.iterdir()) == ["lock", path.name]
    monkeypatch.delattr(Training, "step")
    vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path, resume=True)
    assert_same(adata, expected)


KILLED = """
import os, signal, sys
import anndata as ad, vxpress as vx
from vxpress.core.training import Training
step = Training.step
def killed(training, batch):
    step(training, batch)
    if training.outcome.n_steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Training.step = killed
vx.tl.fit_vae(ad.read_h5ad(sys.argv[1]), n_latent=3, n_hidden=8, max_epochs=3, batch_size=64, batch_key="batch",
              checkpoint_dir=sys.argv[2], checkpoint_minutes=0)
"""


def test_a_killed_process_is_continued_in_another_one(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "cells.h5ad", tmp_path / "here"], check=False)
    assert done.returncode == -signal.SIGKILL
    expected = adata.copy()
    vx.tl.fit_vae(expected, **QUICK)
    vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=tmp_path / "here", resume=True)
    assert_same(adata, expected)


def test_other_versions_and_threads_are_reported(
    stopped: tuple[ad.AnnData, Path], monkeypatch: pytest.MonkeyPatch, warned: list[str]
) -> None:
    adata, folder = stopped
    monkeypatch.setattr(checkpoints, "version", lambda _: "99.0")
    vx.tl.fit_vae(adata, **QUICK, checkpoint_dir=folder, resume=True)
    (said,) = [message for message in warned if "was written with" in message]
    assert "(here 99.0)" in said
    assert "last digits may differ" in said
