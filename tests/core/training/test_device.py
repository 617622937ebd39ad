"""What a GPU is given: rates on the device, graphs, rounded products.

What does not need one runs on the processor, its form called by name.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from vxpress.core import rule
from vxpress.core.config import ModelConfig, TrainConfig
from vxpress.core.data import Batch, Cells, Counts, Source, Streamed, place
from vxpress.core.inference.posterior import encode
from vxpress.core.kernels import dense_likelihood
from vxpress.core.likelihoods import counted
from vxpress.core.model import VAE, build
from vxpress.core.networks import Noise
from vxpress.core.training import Outcome, Training
from vxpress.core.training import device as device_module
from vxpress.core.training.device import Replay
from vxpress.core.training.step import DeviceStep

MakeCells = Callable[..., Cells]
CPU = torch.device("cpu")
# 100 cells to train on in 4 batches: 25 each; 99 in 4: 25 and 24
CONFIG = ModelConfig(n_genes=20, n_latent=3, n_hidden=16)
TRAIN = TrainConfig(max_epochs=4, batch_size=32, early_stopping=False)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# the step


class _Sent(Streamed):
    """Minibatches are assembled and sent ahead on every device."""

    def batches(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        return self.prefetched(parts)


def _streamed(cells: Cells, device: torch.device) -> Streamed:
    return _Sent.of(cells.counts, cells.log_library_n1, cells.covariates, device)


def _fit(
    cells: Source, config: TrainConfig = TRAIN, model: ModelConfig = CONFIG, device: torch.device = CPU
) -> tuple[VAE, Outcome]:
    training = _training(cells, config, model, device)
    return training.model, training.run()


def _training(
    cells: Source,
    config: TrainConfig = TRAIN,
    model: ModelConfig = CONFIG,
    device: torch.device = CPU,
    kind: type[Training] = Training,
) -> Training:
    vae, rows = build(model, 0).to(device), torch.arange(len(cells), device=device)
    return kind(vae, cells, rows[21:], rows[:21], config, seed=0)


def _fit_as_on_a_device(
    monkeypatch: pytest.MonkeyPatch, cells: Source, config: TrainConfig = TRAIN, model: ModelConfig = CONFIG
) -> Outcome:
    """Train on the CPU with the step, the counts and the likelihood of a GPU."""
    monkeypatch.setattr(Counts, "dense", lambda self, rows, out=None, _entries=None: self.padded_dense(rows, out))
    monkeypatch.setattr(counted, "gathered", counted.selected)
    training = _training(cells, config, model)
    training.stepper = DeviceStep(training.model, cells, training.optimizer, training.noise, training.objective)
    return training.run()


MODELS = {
    "nb": CONFIG,
    "zinb": replace(CONFIG, likelihood="zinb", norm="batch", dropout=0.1),
    "thinned": replace(CONFIG, thinning=0.5),
    "latent library": replace(
        CONFIG, latent_library=True, norm="batch", n_categories=(2,), has_batch=True, dispersion="gene-batch"
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_device_step_trains_like_the_plain_step(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cells = make_cells(n_batches=2)
    with rule.plain():
        _, plain = _fit(cells, model=MODELS[name])
        # the closed form of a GPU, which has no positions of non-zeros
        monkeypatch.setattr(rule, "dense_likelihood", lambda name, _device: name in rule.COMPILED_LIKELIHOODS)
        monkeypatch.setattr(dense_likelihood, "_Gathered", lambda x_ng, *_: dense_likelihood._Selected(x_ng))
        outcome = _fit_as_on_a_device(monkeypatch, cells, model=MODELS[name])
    for key, values in plain.history.items():
        np.testing.assert_allclose(outcome.history[key], values, rtol=1e-4, atol=1e-4, err_msg=key)


OTHERWISE: dict[str, dict] = {
    "several samples": {"objective": "dreg", "n_samples": 3},
    "soft free bits": {"free_bits": 0.3, "beta": 2.0},
    "hard free bits": {"free_bits": 0.3, "free_bits_form": "hard"},
    "capacity": {"kl_schedule": "capacity", "kl_capacity": 2.0, "beta": 5.0},
    "encoder ahead": {"encoder_steps": 2},
}
# Below the floor only the reconstruction moves the mean of the posterior. A batch norm after the decoder's first layer
# cancels its bias: that gradient is rounding alone, which Adam scales to full steps, so every processor trains differently.
MODELS_OTHERWISE = {"hard free bits": replace(CONFIG, norm="none")}


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("stream", [False, True])
def test_the_device_step_trains_like_the_plain_step_with_any_settings(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch, name: str, stream: bool
) -> None:
    cells, config, model = (
        make_cells(n_batches=2),
        replace(TRAIN, **OTHERWISE[name]),
        MODELS_OTHERWISE.get(name, CONFIG),
    )
    with rule.plain():
        _, plain = _fit(cells, config, model)
        outcome = _fit_as_on_a_device(monkeypatch, _streamed(cells, CPU) if stream else cells, config, model)
    for key, values in plain.history.items():
        np.testing.assert_allclose(outcome.history[key], values, rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", OTHERWISE)
def test_steps_with_any_settings_are_captured(make_cells: MakeCells, name: str) -> None:
    cells, config = make_cells(400), replace(TRAIN, **OTHERWISE[name])
    _, captured = _on_gpu(cells, config)
    with rule.plain():
        _, eager = _on_gpu(cells, config)
    assert captured.history["lr"] == eager.history["lr"]
    # noise is drawn in a different order
    assert captured.history["elbo_validation"][-1] == pytest.approx(eager.history["elbo_validation"][-1], rel=0.05)


def test_streamed_and_resident_training_are_equal(make_cells: MakeCells) -> None:
    cells = make_cells()
    for context in (rule.plain, nullcontext):
        with context():
            first, resident = _fit(cells)
            second, streaming = _fit(_streamed(cells, CPU))
        assert resident.history == streaming.history
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_without_a_gpu_no_graph_is_used(make_cells: MakeCells) -> None:
    cells, seen = make_cells(3), []
    replay = Replay(lambda batch: seen.append(len(batch)), cells, Noise(0), CPU)
    for n in (3, 3, 3, 3, 3, 2):
        replay(cells.batch(torch.arange(n)))
    assert seen == [3, 3, 3, 3, 3, 2]
    assert replay.failure is not None


class _Stream:
    """Records calls of streams, events and graphs instead of executing them."""

    def __init__(self, *_: object) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append(name)


class _Graph:
    """Replays what was captured in its context, in which nothing runs."""

    recording: _Graph | None = None

    def __init__(self) -> None:
        self.tape: list[Callable[[], None]] = []

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generator = generator

    def pool(self) -> int:
        return 0

    def replay(self) -> None:
        for act in self.tape:
            act()


@contextmanager
def _recording(graph: _Graph, **_: object) -> Iterator[None]:
    _Graph.recording = graph
    try:
        yield
    finally:
        _Graph.recording = None


@pytest.fixture
def no_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace streams and graphs of torch.cuda, so that code that uses them runs on a CPU."""
    monkeypatch.setattr(rule, "captured_step", lambda _: True)
    current = _Stream()
    for name, value in {
        "Stream": _Stream,
        "CUDAGraph": _Graph,
        "graph": _recording,
        "stream": nullcontext,
        "device": nullcontext,
        "current_stream": lambda _: current,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.usefixtures("no_streams")
@pytest.mark.parametrize("stream", [False, True])
def test_every_minibatch_size_is_warmed_up_captured_once_and_replayed(make_cells: MakeCells, stream: bool) -> None:
    seen: list[tuple[str, list[int], list[float]]] = []

    def step(batch: Batch) -> None:
        if (graph := _Graph.recording) is None:
            seen.append(("taken", batch.rows.tolist(), batch.x_ng[:, 0].tolist()))
        else:
            # what a source reads within a graph is read again by every replay
            again = (lambda: cells.batch(batch.rows)) if cells.on_device else (lambda: batch)
            graph.tape.append(lambda: seen.append(("replayed", batch.rows.tolist(), again().x_ng[:, 0].tolist())))

    resident = make_cells(8)
    cells: Source = _streamed(resident, CPU) if stream else resident
    replay = Replay(step, cells, Noise(0), CPU)
    given = [list(range(i, i + n)) for i in range(6) for n in (3, 2)]
    for rows in given:
        replay(cells.batch(torch.tensor(rows)))
    how = ["taken"] * 2 * device_module.WARM_UP_STEPS
    how += ["replayed"] * (len(given) - len(how))
    x_n = resident.counts.dense(torch.arange(8))[:, 0]
    assert seen == [(what, rows, x_n[rows].tolist()) for what, rows in zip(how, given, strict=True)]
    assert replay.failure is None
    graphs = [cast("_Graph", size.graph) for size in replay.sizes.values()]
    assert [len(graph.tape) for graph in graphs] == [1, 1]


@pytest.mark.usefixtures("no_streams")
@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_capture_loses_neither_a_step_nor_noise(make_cells: MakeCells, stream: bool) -> None:
    noise, seen = Noise(0), []

    def step(batch: Batch) -> None:
        assert gc.isenabled() == (_Graph.recording is None)
        if _Graph.recording is not None:
            noise.normal_like(batch.x_ng)
            msg = "cannot be captured"
            raise RuntimeError(msg)
        seen.append((batch.rows.tolist(), batch.x_ng.tolist(), float(noise.normal_like(torch.zeros(())))))

    resident = make_cells(8)
    cells: Source = _streamed(resident, CPU) if stream else resident
    replay = Replay(step, cells, noise, CPU)

    def replay_all() -> None:
        for i in range(8):
            replay(cells.batch(torch.tensor([i])))

    with pytest.warns(RuntimeWarning, match="cannot be captured"):
        replay_all()
    reference = Noise(0)
    draws = [float(reference.normal_like(torch.zeros(()))) for _ in range(8)]
    x_ng = resident.counts.dense(torch.arange(8)).tolist()
    assert seen == [([i], [x_ng[i]], draw) for i, draw in enumerate(draws)]
    assert replay.failure == "cannot be captured"


# on a GPU


def _on_gpu(cells: Cells, config: TrainConfig = TRAIN, model: ModelConfig = CONFIG) -> tuple[VAE, Outcome]:
    return _fit(place(cells, torch.device("cuda")), config, model, torch.device("cuda"))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("where", ["resident", "streamed", "mapped", "stored"])
@pytest.mark.parametrize("name", MODELS)
def test_training_on_a_gpu_gives_the_results_of_a_cpu(make_cells: MakeCells, name: str, where: str) -> None:
    cells, gpu = make_cells(2000, n_batches=2), torch.device("cuda")
    config = replace(TRAIN, max_epochs=12, batch_size=64)
    # with layer norm in so small a network, even fits of one device differ by 3 % between seeds
    settings = replace(MODELS[name], norm="batch")
    _, reference = _fit(cells, config, settings)
    moved = place(cells, gpu, where)
    model, outcome = _fit(moved, config, settings, gpu)
    # different noise, same data and schedule
    mine, theirs = (o.history["elbo_validation"][-1] for o in (outcome, reference))
    assert mine == pytest.approx(theirs, rel=0.03)
    assert outcome.n_voided == 0
    latent = encode(model, moved).mean_nd
    np.testing.assert_allclose(latent, encode(model.cpu(), cells).mean_nd, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_cuda
def test_a_captured_step_equals_the_plain_step(make_cells: MakeCells) -> None:
    gpu, config = torch.device("cuda"), replace(TRAIN, max_epochs=6)
    cells = make_cells(400).to(gpu)
    captured, eager = (_training(cells, config, device=gpu) for _ in range(2))
    step, one_by_one = _device_step(captured), _device_step(eager)
    captured.run()
    assert step.replay.failure is None
    # 379 cells in 12 batches: 32 and 31
    assert {n: size.graph is not None for n, size in step.replay.sizes.items()} == {32: True, 31: True}
    one_by_one.replay.failure = "switched off"
    eager.run()
    recorded, reference = captured.outcome.history, eager.outcome.history
    assert recorded["elbo_validation"] == pytest.approx(reference["elbo_validation"], rel=0.02)
    assert recorded["lr"] == reference["lr"]


def _device_step(training: Training) -> DeviceStep:
    assert isinstance(training.stepper, DeviceStep)
    return training.stepper


@pytest.mark.gpu
@needs_cuda
def test_a_step_that_cannot_be_captured_still_runs(make_cells: MakeCells) -> None:
    gpu = torch.device("cuda")
    training = _training(make_cells(400).to(gpu), device=gpu)
    step = _device_step(training)
    take = step.take

    def waiting(*args: Any) -> None:
        take(*args)
        float(step.voided)

    step.take = waiting  # type: ignore[method-assign, assignment]
    with pytest.warns(RuntimeWarning, match="captured"):
        outcome = training.run()
    assert outcome.n_voided == 0
    assert np.isfinite(outcome.history["elbo_validation"]).all()


class _Guarded(Training):
    """A training in which steps after the second epoch must not wait for the device."""

    def step(self, batch: Batch) -> None:
        # by then libraries are loaded and graphs captured
        torch.cuda.set_sync_debug_mode("error" if self.outcome.n_epochs >= 2 else "default")
        try:
            super().step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("where", ["resident", "streamed", "mapped", "stored"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_within_an_epoch_waits_for_the_device(
    make_cells: MakeCells, monkeypatch: pytest.MonkeyPatch, name: str, where: str, captured: bool
) -> None:
    cells, gpu = make_cells(400, n_batches=2), torch.device("cuda")
    if not captured:
        monkeypatch.setattr(device_module, "WARM_UP_STEPS", 10**9)
    moved = place(cells, gpu, where)
    outcome = _training(moved, TRAIN, MODELS[name], gpu, _Guarded).run()
    assert outcome.n_epochs == TRAIN.max_epochs
    assert outcome.n_voided == 0


@pytest.mark.gpu
@needs_cuda
def test_a_training_on_a_gpu_is_continued_with_the_same_results(make_cells: MakeCells, tmp_path: Path) -> None:
    gpu, config = torch.device("cuda"), replace(TRAIN, encoder_steps=1, free_bits=0.3)
    cells = make_cells(400).to(gpu)
    whole, paused, resumed = (_training(cells, config, device=gpu) for _ in range(3))
    whole.run()
    paused.run(until=2)
    file = tmp_path / "training.pt"
    torch.save(paused.state_dict(), file)
    resumed.load_state_dict(torch.load(file, weights_only=True, map_location=gpu))
    resumed.run()
    for name, values in whole.outcome.history.items():
        # sums on a GPU depend on the order in which threads end
        np.testing.assert_allclose(resumed.outcome.history[name], values, rtol=1e-3, atol=1e-3, err_msg=name)
