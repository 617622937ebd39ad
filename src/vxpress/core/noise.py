"""The random numbers of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

BITS = 1 << 16
NO_BITS = np.empty((0, 0), np.uint16)


class Noise:
    """All random numbers of a model, independent of torch's global state."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.generator = torch.Generator(device=device).manual_seed(seed)
        # for masks on a CPU, where torch draws Bernoulli numbers one by one
        self._bits = np.random.SFC64(seed) if torch.device(device).type == "cpu" else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the generator and, on a CPU, that of the random bits."""
        state = {"generator": self.generator.get_state()}
        if self._bits is not None:
            words = np.asarray(self._bits.state["state"]["state"], np.uint64)
            state["bits"] = torch.from_numpy(words.view(np.int64).copy())
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where the numbers of a stored state end."""
        self.generator.set_state(state["generator"].cpu())
        if self._bits is not None:
            now: Any = self._bits.state
            self._bits.state = now | {"state": {"state": state["bits"].cpu().numpy().view(np.uint64)}}

    def normal_like(self, x: Tensor) -> Tensor:
        """Draw standard normal numbers with the shape of ``x``."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def normals(self, k: int, x: Tensor) -> Tensor:
        """Draw standard normal numbers, ``k`` times the shape of ``x``."""
        return x.new_empty(k, *x.shape).normal_(generator=self.generator)

    def bits(self, n: int, width: int) -> np.ndarray:
        """Draw uniform 16-bit numbers (n, width), on a CPU."""
        assert self._bits is not None  # noqa: S101 - called on a CPU only
        return self._bits.random_raw(-(-n * width // 4)).view(np.uint16)[: n * width].reshape(n, width)

    def word(self) -> np.uint64:
        """Draw 64 random bits, on a CPU."""
        assert self._bits is not None  # noqa: S101 - called on a CPU only
        return np.uint64(self._bits.random_raw())

    def rates(self, n: int, least: float) -> Tensor:
        """Draw ``n`` probabilities uniformly between ``least`` and 1, as multiples of 1 / 65,536 on a CPU."""
        if self._bits is None:
            return 1.0 - (1.0 - least) * torch.rand(n, generator=self.generator, device=self.generator.device)
        limits = np.floor((1.0 - least) * self.bits(n, 1)[:, 0].astype(np.float64))
        return torch.from_numpy((BITS - limits) / BITS)

    def binomial(self, x: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Draw binomial numbers of ``x`` trials each, on a CPU."""
        assert self._bits is not None  # noqa: S101 - called on a CPU only
        return np.random.Generator(self._bits).binomial(x, rate)

    def dropout_bits(self, x: Tensor, share: float) -> tuple[np.ndarray, int]:
        """Return 16-bit numbers shaped like ``x`` (empty without dropout), and the limit below which a unit is kept."""
        limit = keep_limit(1.0 - share)
        return (self.bits(*x.shape) if limit < BITS else NO_BITS), limit

    def choose(self, n: int, share: float) -> Tensor:
        """Choose each of ``n`` cells with probability ``share`` (to 1 / 65,536 on a CPU), bool (n,)."""
        if self._bits is None:
            return torch.rand(n, device=self.generator.device, generator=self.generator) < share
        return torch.from_numpy(self.bits(n, 1)[:, 0] < keep_limit(share))

    def dropout(self, x: Tensor, keep: float) -> Tensor:
        """Draw factors for ``x`` (n, width): 1 / keep with probability ``keep`` (to 1 / 65,536 on a CPU), else 0."""
        if self._bits is None:
            return torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)
        kept = self.bits(*x.shape) < keep_limit(keep)
        return torch.from_numpy(kept).to(x.dtype).mul_(BITS / keep_limit(keep))


def keep_limit(keep: float) -> int:
    """Return the limit below which 16-bit numbers mean that a unit is kept."""
    return round(keep * BITS)
