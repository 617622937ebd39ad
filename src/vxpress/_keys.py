"""All names under which the package writes into an AnnData."""

from __future__ import annotations

from dataclasses import dataclass, replace

DEFAULT_KEY = "vae"
KEPT = "_kept"
LIBRARY_SIZE = "library_size"


def check_name(argument: str, name: object) -> None:
    """Raise ``ValueError`` unless ``name`` can name a slot, also in a file.

    In files ``/`` separates groups, ``.`` and ``..`` are groups, and AnnData reserves ``_index``.
    """
    if not isinstance(name, str) or not name.strip(". ") or "/" in name or "\0" in name or name == "_index":
        msg = (
            f"{argument}={name!r} cannot name a result, especially not in a file. Pass a non-empty string without '/' that does "
            "not consist of dots and is not '_index'."
        )
        raise ValueError(msg)


@dataclass(frozen=True)
class Keys:
    """The slots of one fit."""

    latent: str
    latent_var: str
    normalized: str
    split: str
    library: str
    loadings: str
    uns: str
    view: str = ""
    """Ending of the slots of posteriors with optional covariates kept; empty if they are removed."""

    @classmethod
    def of(cls, key: str | None = None, argument: str = "key") -> Keys:
        """Return the slots of the fit of this name, as scanpy names them. ``None`` and ``"vae"`` mean the default names."""
        if key is not None:
            check_name(argument, key)
        if key is None or key == DEFAULT_KEY:
            slots = "X_vae", "X_vae_var", "vae_normalized", "vae_split", "vae_library", "X_vae_loadings"
            return cls(*slots, DEFAULT_KEY)
        return cls(key, f"{key}_var", f"{key}_normalized", f"{key}_split", f"{key}_library", f"{key}_loadings", key)

    def kept(self) -> Keys:
        """Return the slots of the same fit for posteriors with the effects of optional covariates kept."""
        return replace(self, latent=f"{self.latent}{KEPT}", latent_var=f"{self.latent}{KEPT}_var", view=KEPT)

    @property
    def perturbed(self) -> str:
        """The entry of ``obsm`` for posterior means with the effects of perturbations added."""
        return f"{self.latent}_perturbed"

    def of_block(self, name: str) -> tuple[str, str]:
        """Return the entries of ``obsm`` for posterior mean and variance of a further latent block."""
        return f"{self.uns}_{name}{self.view}", f"{self.uns}_{name}{self.view}_var"

    def of_ensemble(self) -> tuple[str, str]:
        """Return the entries of ``obsm`` for posterior means and variances of several fits side by side."""
        name = f"{'X_vae' if self.uns == DEFAULT_KEY else self.uns}_ensemble{self.view}"
        return name, f"{name}_var"

    def bounds(self, layer: str | None = None) -> tuple[str, str]:
        """Return the layers of the ends of a credible interval of ``layer``, by default the denoised layer."""
        name = self.normalized if layer is None else layer
        return f"{name}_lower", f"{name}_upper"
