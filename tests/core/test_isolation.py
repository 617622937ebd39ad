"""Random draws, default device and shared settings do not affect the rest of the process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from vxpress.core.config import ModelConfig, PriorConfig
from vxpress.core.isolation import SharedSetting, on_device, seeded
from vxpress.core.model import build, expected_shapes
from vxpress.core.priors import PRIORS
from vxpress.core.priors.fitting import build_prior


def _weight(layer: Callable[[int, int], nn.Module]) -> Tensor:
    return layer(4, 3).state_dict()["weight"]


DRAWS: dict[str, Callable[[], Tensor]] = {
    "randn": lambda: torch.randn(40),
    "rand": lambda: torch.rand(3),
    "randint": lambda: torch.randint(9, (5,)),
    "randint from": lambda: torch.randint(3, 9, (5,)),
    "randperm": lambda: torch.randperm(9),
    "normal_": lambda: torch.empty(20).normal_(),
    "uniform_": lambda: torch.empty(20).uniform_(-1, 2),
    "bernoulli_": lambda: torch.empty(9).bernoulli_(0.4),
    "bernoulli": lambda: torch.bernoulli(torch.full((9,), 0.4)),
    "normal": lambda: torch.normal(torch.zeros(9), 1.0),
    "poisson": lambda: torch.poisson(torch.full((9,), 4.0)),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 3),
    "gamma": lambda: torch._standard_gamma(torch.ones(9)),
    "dropout": lambda: nn.functional.dropout(torch.ones(20)),
    "exponential_": lambda: torch.empty(9).exponential_(),
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(9)),
    "linear": lambda: _weight(nn.Linear),
    "embedding": lambda: _weight(nn.Embedding),
}


@pytest.fixture(autouse=True)
def _switches_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_equal_those_of_the_global_generator_which_does_not_change(name: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = DRAWS[name]()
    before = torch.random.get_rng_state()
    with seeded(11):
        found = DRAWS[name]()
    assert torch.equal(found, expected)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_given_generator_is_used():
    with seeded(0):
        found = torch.randn(5, generator=torch.Generator().manual_seed(3))
        gamma = torch._standard_gamma(torch.ones(5), torch.Generator().manual_seed(3))
    assert torch.equal(found, torch.randn(5, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(gamma, torch._standard_gamma(torch.ones(5), torch.Generator().manual_seed(3)))


def test_a_tensor_on_another_device_takes_its_numbers_from_the_same_draws():
    # a device without values stands for a GPU
    with seeded(5):
        drawn = torch.randn(3, 2, device="meta"), torch.randperm(4, device="meta")
        after = torch.randn(2)
    with seeded(5):
        torch.randn(3, 2), torch.randperm(4)
        expected = torch.randn(2)
    assert [(t.device.type, tuple(t.shape)) for t in drawn] == [("meta", (3, 2)), ("meta", (4,))]
    assert torch.equal(after, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_draws_on_a_gpu_equal_those_on_a_cpu():
    with seeded(5):
        there = torch.randn(3, 2, device="cuda")
    with seeded(5):
        here = torch.randn(3, 2)
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("prior", PRIORS)
def test_models_built_in_threads_equal_those_built_alone(prior: str):
    config = ModelConfig(n_genes=9, n_latent=3, n_hidden=8, prior=PriorConfig(name=prior))

    def weights(seed: int) -> list[Tensor]:
        models = [build(config, seed), build_prior(PriorConfig(name=prior, n_conditions=2), 3, seed)]
        expected_shapes(config)
        return [value for model in models for value in model.state_dict().values()]

    alone = [weights(seed) for seed in range(4)]
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(weights, [0, 1, 2, 3] * 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    for found, expected in zip(together, alone * 2, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    # different seeds give different weights, so the comparison above is meaningful
    assert not torch.equal(alone[0][0], alone[1][0])


@pytest.mark.parametrize("prior", PRIORS)
def test_expected_shapes_draw_no_random_numbers(prior: str):
    config = ModelConfig(n_genes=9, n_latent=3, n_hidden=8, prior=PriorConfig(name=prior))
    before = torch.random.get_rng_state()
    shapes = expected_shapes(config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert shapes == {name: tuple(value.shape) for name, value in build(config, 0).state_dict().items()}


def test_the_default_device_belongs_to_one_thread_and_the_innermost_block():
    elsewhere: list[str] = []
    with on_device("meta"):
        thread = threading.Thread(target=lambda: elsewhere.append(torch.zeros(2).device.type))
        thread.start()
        thread.join()
        assert torch.zeros(2).device.type == "meta"
        assert torch.ones(2, device="cpu").device.type == "cpu"
        with on_device("cpu"):
            assert torch.tensor([1.0]).device.type == "cpu"
    assert elsewhere == ["cpu"]
    assert torch.arange(2).device.type == "cpu"


def test_the_users_default_device_is_overridden_and_restored():
    with torch.device("meta"):
        with on_device("cpu"):
            made = [
                torch.zeros(2),
                torch.tensor(1.0),
                torch.randn(2),
                torch.arange(3),
                torch.full((2,), 1.0),
                torch.eye(2),
            ]
        assert torch.zeros(2).device.type == "meta"
    assert {tensor.device.type for tensor in made} == {"cpu"}


class Value:
    """A setting that records how often it is written."""

    def __init__(self, value: str) -> None:
        self.value, self.n_written = value, 0

    def setting(self, *also: str) -> SharedSetting[str]:
        return SharedSetting(lambda: self.value, self.write, "ours", *also)

    def write(self, value: str) -> None:
        self.value, self.n_written = value, self.n_written + 1


def test_the_last_holder_restores_a_shared_setting():
    value = Value("theirs")
    setting = value.setting()
    setting.take("a")
    setting.take("b")
    setting.release("a")
    assert value.value == "ours"
    setting.release("a")
    assert value.value == "ours"
    setting.release("b")
    setting.release("b")
    assert value.value == "theirs"


@pytest.mark.parametrize("found", ["ours", "as good"])
def test_a_shared_setting_with_the_right_value_is_never_written(found: str):
    value = Value(found)
    with value.setting("as good").held():
        assert value.value == found
    assert value.n_written == 0


def test_a_value_set_by_others_in_the_meantime_is_kept():
    value = Value("theirs")
    with value.setting().held():
        value.value = "another"
    assert value.value == "another"


def test_a_shared_setting_is_restored_after_an_error_and_between_threads():
    value = Value("theirs")
    setting = value.setting()

    def work(i: int) -> str:
        try:
            with setting.held():
                found = value.value
                if i % 3 == 0:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return found

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(200))) == {"ours"}
    assert value.value == "theirs"
