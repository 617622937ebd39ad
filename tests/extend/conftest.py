"""The classes of a user are registered in every test of this folder, and each has a fit."""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import pytest

import vxpress as vx
from vxpress import extend

from ._outside import EXTENSIONS, QUICK, register


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    for kind in EXTENSIONS:
        register(kind)
    try:
        yield
    finally:
        for kind, extension in EXTENSIONS.items():
            extend.unregister(kind, extension.name)


@pytest.fixture(scope="session")
def fits(_simulated: ad.AnnData) -> dict[str, ad.AnnData]:
    """Return the same cells with a fit of each extension."""
    found = {}
    for kind, extension in EXTENSIONS.items():
        # the fixture of a session can precede that of a module, which removes the class afterwards
        register(kind)
        found[kind] = _simulated.copy()
        vx.tl.fit_vae(found[kind], "batch", **QUICK, **extension.settings)
    return found


@pytest.fixture(params=EXTENSIONS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fit(fits: dict[str, ad.AnnData], kind: str) -> ad.AnnData:
    return fits[kind].copy()
