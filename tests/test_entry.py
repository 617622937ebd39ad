"""Public calls neither see nor change the settings of torch and numpy, nor any global random state."""

from __future__ import annotations

import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import vxpress as vx
from vxpress._entry import entry

MODULES = (vx.pp, vx.tl, vx.pl, vx.io, vx.datasets, vx.metrics)
FUNCTIONS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if not isinstance(getattr(module, name), type)
} | {"vxpress.save_model": vx.save_model, "vxpress.load_model": vx.load_model}


@contextmanager
def setting(write: Callable[[Any], object], value: Any, usual: Any) -> Iterator[None]:
    write(value)
    try:
        yield
    finally:
        write(usual)


def _numpy(how: dict[str, str]) -> None:
    np.seterr(**how)


USUAL_NUMPY = np.geterr()
STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "float16": lambda: setting(torch.set_default_dtype, torch.float16, torch.float32),
    "default device": lambda: setting(torch.set_default_device, "meta", None),
    "device block": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "numpy raises": lambda: setting(_numpy, {"all": "raise"}, USUAL_NUMPY),
    "rounded products": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
}
TOGETHER = ("inference", "float64", "default device", "autocast", "numpy raises", "rounded products", "deterministic")


def found() -> dict[str, Any]:
    """Every setting as code around a call finds it."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "numpy": np.geterr(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def random_states() -> list[str]:
    states = torch.random.get_rng_state().tolist(), np.random.get_state(), random.getstate()  # noqa: NPY002
    with np.printoptions(threshold=10_000):
        return [repr(state) for state in states]


FIT = {"n_latent": 3, "n_hidden": 8, "max_epochs": 2, "batch_size": 64}


def fit(adata: ad.AnnData, **changed: Any) -> ad.AnnData:
    out = adata.copy()
    vx.tl.fit_vae(out, "batch", **(FIT | changed))
    return out


def latents(adata: ad.AnnData, **changed: Any) -> np.ndarray:
    return fit(adata, **changed).obsm["X_vae"]


def every_call(adata: ad.AnnData, folder: Path) -> dict[str, Any]:
    """Each public function called once on a small fit: what it gave, by name."""
    out: dict[str, Any] = {}
    raw = vx.datasets.simulate(50, 20, rng=3)
    vx.pp.library_size(raw, key_added="size")
    vx.pp.highly_variable_genes(raw, n_top_genes=10)
    out |= {"simulate": raw.X.toarray(), "library_size": raw.obs["size"], "hvg": raw.var["highly_variable"]}
    held_out = adata[100:].copy()
    a = fit(adata[:100], prior="flow")
    out["fit_vae"] = a.obsm["X_vae"]
    vx.save_model(a, folder / "fit.safetensors")
    loaded = vx.load_model(folder / "fit.safetensors")
    out["load_model"] = loaded.uns["vae"]["weights"]["encoder.mean.weight"]
    vx.tl.fit_prior(a, "mixture", n_components=3)
    out["fit_prior"] = a.uns["vae"]["weights"]["prior.loc_kd"]
    query = adata[:50].copy()
    query.obs["batch"] = "new"
    vx.tl.encode(query, a, fine_tune=1)
    out["encode"] = query.obsm["X_vae"]
    vx.pp.neighbors(a, n_neighbors=5, n_draws=3)
    out["neighbors"] = a.obsp["distances"].toarray()
    vx.tl.denoise(a, key_added="again")
    vx.tl.log_likelihood(a, n_samples=3)
    vx.tl.sample(a)
    vx.tl.predictive_check(a, n_draws=2)
    vx.tl.diagnose(a, n_cells=10)
    vx.tl.cluster_stability(a, "group")
    vx.tl.outliers(query, a, calibration=held_out, min_stratum=20)
    vx.tl.rank_genes_groups(a, "group", n_cells=50, n_draws=2)
    vx.tl.counterfactual(a, "batch", value=str(a.obs["batch"].iloc[0]))
    for which, slots in (("obs", a.obs), ("layers", a.layers), ("obsm", a.obsm), ("query", query.obs)):
        out |= {f"{which} {name}": slots[name] for name in slots}
    out |= {f"de {name}": a.uns["rank_genes_groups"][name].tolist() for name in ("names", "scores")}
    out["generate"] = vx.tl.generate(a, 9).X
    path = vx.tl.interpolate(a, a.obs_names[0], a.obs_names[1], n_steps=3)
    out["interpolate"] = path.X
    close = a.obsm["X_vae"] + 0.1
    out["prior_gap"] = vx.metrics.prior_gap(a.obsm["X_vae"], a.obsm["X_vae_var"])
    out["mixing_lisi"] = vx.metrics.mixing_lisi(a.obsm["X_vae"], close)
    out["two_sample_auroc"] = vx.metrics.two_sample_auroc(a.obsm["X_vae"], close)
    for draw in (vx.pl.kl, vx.pl.history, vx.pl.latent, vx.pl.posterior, vx.pl.predictive_check):
        draw(a, show=False)
    vx.pl.volcano(a, "group_0", show=False)
    vx.pl.trajectory(path, show=False)
    plt.close("all")
    return out


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "toarray"):
        a, b = a.toarray(), b.toarray()
    a, b = np.asarray(a), np.asarray(b)
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_settings_of_its_own(name: str):
    assert FUNCTIONS[name].with_own_settings
    assert FUNCTIONS[name].__wrapped__.__module__ == FUNCTIONS[name].__module__


@pytest.mark.parametrize("state", STATES)
def test_a_fit_is_the_same_in_every_state_and_leaves_it(adata: ad.AnnData, state: str):
    expected = latents(adata)
    with STATES[state]():
        before = found()
        given = latents(adata)
        assert found() == before
    assert np.array_equal(given, expected)


def test_every_call_is_the_same_in_all_states_together_and_leaves_them(adata: ad.AnnData, tmp_path: Path):
    before_random, before = random_states(), found()
    expected = every_call(adata, tmp_path)
    assert random_states() == before_random
    assert found() == before
    np.random.seed(1)  # noqa: NPY002 - somebody else's
    torch.manual_seed(1)
    random.seed(1)
    before_random = random_states()
    with ExitStack() as stack, warnings.catch_warnings():
        for state in TOGETHER:
            stack.enter_context(STATES[state]())
        before = found()
        given = every_call(adata, tmp_path)
        assert found() == before
    assert random_states() == before_random
    assert given.keys() == expected.keys()
    different = [name for name, value in expected.items() if not same(given[name], value)]
    assert not different


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_settings_are_put_back_after_errors_and_interrupts(error: type[BaseException]):
    @entry
    def fails() -> None:
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32
        torch.set_grad_enabled(False)
        raise error

    with ExitStack() as stack:
        for state in TOGETHER:
            stack.enter_context(STATES[state]())
        before = found()
        with pytest.raises(error):
            fails()
        assert found() == before
    with pytest.raises(error):
        fails()
    assert torch.is_grad_enabled()


def test_an_interrupt_while_gradients_are_off_does_not_leave_them_off(
    adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
):
    from vxpress.core.training import Training

    looks = []

    def half_way(*args: Any) -> Any:
        looks.append(args)
        if len(looks) == 2:
            torch.set_grad_enabled(False)  # as torch.no_grad does first, before Python looks for interrupts
            raise KeyboardInterrupt
        return validate(*args)

    validate = Training.validate
    monkeypatch.setattr(Training, "validate", half_way)
    adata.var["highly_variable"] = np.arange(adata.n_vars) % 2 == 0
    # the genes outside the model are read out with gradients, after the interrupt
    stored = fit(adata).uns["vae"]
    assert stored["params"]["stopped"] == "interrupted"
    assert torch.is_grad_enabled()


def test_a_call_in_a_call_leaves_the_settings_of_the_outer_one():
    @entry
    def inner() -> None:
        pass

    @entry
    def outer() -> tuple[torch.dtype, bool]:
        inner()
        return torch.get_default_dtype(), torch.is_grad_enabled()

    with STATES["float64"](), torch.no_grad():
        assert outer() == (torch.float32, True)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float64, False)


@pytest.mark.parametrize("prior", ["normal", "flow"])
def test_fits_in_threads_have_the_bits_of_a_fit_alone(adata: ad.AnnData, prior: str):
    expected = latents(adata, prior=prior)
    before, interval = random_states(), sys.getswitchinterval()
    given: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: given.append(latents(adata, prior=prior))) for _ in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        with STATES["float64"]():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert torch.get_default_dtype() == torch.float64
    finally:
        sys.setswitchinterval(interval)
    assert len(given) == 4
    assert all(np.array_equal(one, expected) for one in given)
    assert random_states() == before


@pytest.mark.parametrize(
    "call",
    [
        lambda adata: vx.pp.library_size(adata, overwrite=True),
        lambda adata: vx.tl.fit_vae(adata, n_latent=2, n_hidden=4, max_epochs=1, denoised=False),
    ],
    ids=["library_size", "fit_vae"],
)
def test_warnings_point_to_the_line_that_called(adata: ad.AnnData, call: Callable[[ad.AnnData], None]):
    with pytest.warns(UserWarning, match="view") as caught:
        call(adata[:20])
    # anndata 0.13 adds warnings of its own
    ours = [record for record in caught if str(record.message).startswith("Received a view")]
    assert {record.filename for record in ours} == {__file__}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (vx.tl.fit_vae, {"n_latents": 3}, "argument 'n_latents'. Did you mean n_latent="),
        (vx.tl.fit_vae, {"gene_likelihood": "nb"}, "mean likelihood="),
        (vx.tl.fit_vae, {"dropout_rate": 0.1}, r"mean options=vx.tl.FitOptions\(dropout=...\)"),
        (vx.tl.rank_genes_groups, {"group1": "group_0"}, "mean groups="),
        (vx.tl.diagnose, {"zzz": 1}, "It takes adata, "),
    ],
)
def test_an_unknown_argument_is_answered_with_similar_ones(
    adata: ad.AnnData, function: Callable[..., object], arguments: dict[str, Any], message: str
):
    with pytest.raises(TypeError, match=message):
        function(adata, **arguments)
