"""Progress bars: what they say, when they are silent, and that they change nothing."""

from __future__ import annotations

import inspect
import io
import time
from typing import Any

import numpy as np
import pytest
import scanpy as sc

import vxpress as vx
from vxpress import _progress
from vxpress._progress import Display, progress_bar
from vxpress.core.progress import Stage, stage


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def displays(monkeypatch: pytest.MonkeyPatch) -> list[Display]:
    """The displays that calls open, which draw nothing by themselves."""
    opened: list[Display] = []

    class Recorded(Display):
        def start(self) -> None:
            self.begun: list[Stage] = []
            opened.append(self)

        def begin(self, stage: Stage) -> None:
            super().begin(stage)
            self.begun.append(stage)

    monkeypatch.setattr(_progress, "Display", Recorded)
    return opened


def shown(stages: list[Stage], stream: io.StringIO, *, clock: float = 0.0) -> str:
    """What is drawn of some stages, of which the last is the innermost."""
    display = Display("fit_vae", stream, at_once=True)
    for part in stages:
        display.begin(part)
    display.stages = [(part, since - clock) for part, since in display.stages]
    display.draw()
    return stream.getvalue().replace("\r", "")


def test_the_bar_of_a_terminal_says_call_stage_share_and_time_left():
    found = shown([Stage("training", 200, 50, "epoch 3 of 12, elbo -81.2")], Terminal(), clock=60.0)
    assert found.startswith("fit_vae: training:  25%|")
    assert "01:00<03:00, epoch 3 of 12, elbo -81.2" in found
    assert "\n" not in found


def test_a_log_file_gets_lines():
    found = shown([Stage("training", 200, 50)], io.StringIO(), clock=60.0)
    assert found.startswith("fit_vae: training:  25%|")
    assert found.endswith("\n")
    assert len(found.splitlines()) == 1


def test_inner_stages_are_named_where_they_do_not_count_and_left_out_where_they_do():
    outer, inner = Stage("training", 4, 1), Stage("decoding", 9, 8)
    assert "decoding" not in shown([outer, inner], Terminal())
    assert "fit_vae: training:  25%" in shown([outer, inner], Terminal())
    compiling = Stage("compiling, once per installation")
    found = shown([outer, compiling], Terminal(), clock=12.0)
    assert found.strip() == "fit_vae: training: compiling, once per installation 00:12"
    assert "fit_vae: cure, free bits: decoding:  89%" in shown([Stage("cure, free bits"), inner], Terminal())
    assert shown([], Terminal()).startswith("fit_vae 00:0")


def test_the_time_left_does_not_count_what_a_stage_waited_for(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(_progress.time, "time", lambda: now[0])
    stream = io.StringIO()
    display = Display("fit_vae", stream, at_once=True)
    training, compiling = Stage("training", 4), Stage("compiling")
    display.begin(training)
    display.begin(compiling)
    now[0] += 30
    display.end(compiling)
    now[0] += 10
    training.done = 1
    display.draw()
    assert "00:10<00:30" in stream.getvalue()


def test_the_line_is_cleared_when_its_stage_ends_and_when_the_call_does():
    stream = Terminal()
    display, part = Display("fit_vae", stream, at_once=True), Stage("training", 2, 1)
    display.begin(part)
    display.draw()
    display.end(part)
    assert stream.getvalue().rpartition("\r")[2] == ""
    assert stream.getvalue().split("\r")[-2].strip() == ""
    display.close()
    assert "\n" not in stream.getvalue()
    display.close()


def test_it_is_drawn_while_a_single_step_lasts(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(_progress.sys, "stderr", stream)
    with progress_bar("encode", True), stage("encoding", 1):
        end = time.monotonic() + 20
        while "encode: encoding" not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert "encode: encoding:   0%" in stream.getvalue()


@pytest.mark.parametrize(
    ("progress", "verbosity", "silent"),
    [(None, 0, True), (None, 1, False), (None, 3, False), (False, 3, True), (True, 0, False)],
)
def test_who_is_silent(displays, progress, verbosity, silent):
    sc.settings.verbosity = verbosity
    with progress_bar("encode", progress), stage("encoding", 1):
        pass
    assert [display.delay for display in displays] == (
        [] if silent else [0.0 if progress else _progress.DELAY_OF_LINES]
    )


def test_a_terminal_waits_for_five_seconds():
    assert Display("encode", Terminal(), at_once=False).delay == 5.0


def test_a_quick_call_shows_nothing(capsys):
    with progress_bar("encode", None), stage("encoding", 1):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_stream_that_is_gone_does_not_end_the_computation(monkeypatch):
    stream = Terminal()
    stream.close()
    monkeypatch.setattr(_progress.sys, "stderr", None)
    with progress_bar("encode", True), stage("encoding", 1):
        pass


@pytest.mark.parametrize("wrong", ["yes", 1, 0, "auto"])
def test_progress_is_true_false_or_none(adata, wrong):
    with pytest.raises(ValueError, match=r"progress=.*True, False or None"):
        vx.pp.library_size(adata, progress=wrong, key_added="n")
    assert "n" not in adata.obs


def names(display: Display) -> set[str]:
    return {part.what for part in display.begun}  # type: ignore[attr-defined]


def test_the_stages_of_a_fit_and_that_it_is_the_same_without(adata, quick, displays):
    adata.var["highly_variable"] = np.arange(adata.n_vars) < 40
    vx.tl.fit_vae(adata, **quick, progress=True)
    vx.tl.fit_vae(adata, **quick, progress=False, key_added="silent")
    assert [display.call for display in displays] == ["fit_vae"]
    expected = {"reading counts", "training", "encoding", "fitting dispersions", "judging the fit", "decoding"}
    assert expected | {"reading out genes outside the model"} <= names(displays[0])
    (training,) = [part for part in displays[0].begun if part.what == "training"]  # type: ignore[attr-defined]
    assert training.done == training.total == adata.uns["vae"]["params"]["n_steps"]
    assert training.note.startswith("epoch 2 of 2, elbo -")
    assert np.array_equal(adata.obsm["X_vae"], adata.obsm["silent"])
    assert np.array_equal(adata.layers["vae_normalized"], adata.layers["silent_normalized"])
    assert displays[0].stages == []


CALLS: dict[str, tuple[Any, str]] = {
    "encode": (vx.tl.encode, "encoding"),
    "denoise": (vx.tl.denoise, "decoding"),
    "rank_genes_groups": (lambda adata: vx.tl.rank_genes_groups(adata, "group"), "decoding groups"),
    "log_likelihood": (lambda adata: vx.tl.log_likelihood(adata, n_samples=2), "importance sampling"),
    "sample": (vx.tl.sample, "drawing counts"),
    "generate": (lambda adata: vx.tl.generate(adata, 20), "drawing counts"),
    "counterfactual": (lambda adata: vx.tl.counterfactual(adata, "batch", "batch_1"), "decoding"),
    "predictive_check": (lambda adata: vx.tl.predictive_check(adata, n_draws=2), "comparing counts"),
    "diagnose": (lambda adata: vx.tl.diagnose(adata, n_cells=5), "refining posteriors"),
    "fit_prior": (lambda adata: vx.tl.fit_prior(adata, "mixture", max_steps=3), "learning the prior"),
    "interpolate": (lambda adata: vx.tl.interpolate(adata, "group_0", "group_1", groupby="group"), "decoding"),
    "library_size": (lambda adata: vx.pp.library_size(adata, key_added="n"), "reading counts"),
    "highly_variable_genes": (lambda adata: vx.pp.highly_variable_genes(adata, n_top_genes=9), "computing residuals"),
    "neighbors": (lambda adata: vx.pp.neighbors(adata, n_draws=2), "drawing posteriors"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_long_call_shows_its_stages(fitted, displays, name):
    call, stage_of_it = CALLS[name]
    # genes that were marked by hand are not written over
    del fitted.var["highly_variable"]
    call(fitted)
    assert [display.call for display in displays] == [name]
    assert stage_of_it in names(displays[0])
    assert displays[0].stages == []


def test_outliers_and_compare_show_theirs(fitted, displays):
    cells = fitted[fitted.obs["vae_split"] == "train"].copy()
    new = vx.datasets.simulate(500, 60, n_groups=3, n_batches=2, library_mean=300, rng=2)
    new.obs["age"] = 50.0
    vx.tl.outliers(new[:100].copy(), cells, calibration=new[100:].copy())
    assert displays[-1].call == "outliers"
    assert {"scoring cells", "finding nearest training cells"} <= names(displays[-1])
    vx.tl.compare(new, {"a": fitted, "b": fitted}, n_samples=10)
    assert displays[-1].call == "compare"
    assert {"fit 'a'", "fit 'b'", "importance sampling"} <= names(displays[-1])


def test_every_call_with_a_bar_takes_the_keyword_and_documents_it_alike():
    functions = [
        getattr(vx.tl, name, None) or getattr(vx.pp, name) for name in (*CALLS, "fit_vae", "compare", "outliers")
    ]
    texts = set()
    for function in functions:
        parameter = inspect.signature(function).parameters["progress"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is None
        documented = inspect.getdoc(function) or ""
        texts.add(" ".join(documented.partition("\nprogress\n")[2].partition("never.\n")[0].split()))
    assert len(texts) == 1
    assert "five seconds" in texts.pop()
