# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The radon posteriors and the horseshoe once more, in NumPyro; see references.py.

Each is a Gaussian linear model whose effects have scales of their own:
y = fixed part + z . effect of the row's group + noise, with K effects in each of J groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from .target import Target

Values: TypeAlias = dict[str, Any]
Parts: TypeAlias = tuple[Any, Any, Any, Any]

WITHOUT_EFFECTS = ("marginal", "auxiliary")


@dataclass(frozen=True)
class Twin:
    """A posterior once more, in NumPyro.

    Attributes:
        priors: Of all sites but the effects.
        parts: From their values to the effects' scales and the noise's, the effects' means, and
            the fixed coefficients: of shapes ``(K,)``, ``()``, ``(K,)`` and ``(P,)``.
        cross: Sums over each group's rows of (z, w, y) (z, w, y)', where w goes with the fixed
            coefficients; of shape ``(J, K + P + 1, K + P + 1)``. No likelihood needs more.
        count: The number of rows.
        names: The sites of the effects: one for each of the K, or one for all of a lone group.
        derive: From values of the priors' sites to sites of the target that these stand for.
    """

    priors: dict[str, dist.Distribution]
    parts: Callable[[Values], Parts]
    cross: jax.Array
    count: int
    names: tuple[str, ...]
    derive: Callable[[Values], Values] = lambda values: {}

    @property
    def positive(self) -> list[str]:
        """The sites whose unconstrained values are logs."""
        supports = {name: prior.support for name, prior in self.priors.items()}
        each = {name: getattr(s, "base_constraint", s) for name, s in supports.items()}
        return [name for name, one in each.items() if one is dist.constraints.positive]

    def model(self, form: str) -> None:
        """The NumPyro model of that form; ``effect`` is in units of its scale if not centred."""
        values = {name: numpyro.sample(name, prior) for name, prior in self.priors.items()}
        scale, noise, loc, fixed = self.parts(values)
        if form in WITHOUT_EFFECTS:
            numpyro.factor("y", self.marginal(values)[0])
            return
        shape = (len(self.cross), len(scale))
        if form == "centered":
            effect = numpyro.sample("effect", dist.Normal(loc, scale).expand(shape).to_event(2))
        else:
            raw = numpyro.sample("effect", dist.Normal(0.0, 1.0).expand(shape).to_event(2))
            effect = loc + scale * raw
        others = jnp.broadcast_to(jnp.append(-fixed, 1.0), (shape[0], len(fixed) + 1))
        weights = jnp.concatenate([-effect, others], -1)
        squares = jnp.einsum("jm,jmn,jn->", weights, self.cross, weights)
        numpyro.factor("y", self._constant(noise) - squares / (2 * noise**2))

    def marginal(self, values: Values) -> tuple[Any, Any, Any]:
        """The log likelihood without effects; the raw effects' means and factors of precision."""
        scale, noise, loc, fixed = self.parts(values)
        size = len(scale)
        weights = jnp.concatenate([-loc, -fixed, jnp.ones(1)])
        squares = weights @ self.cross.sum(0) @ weights / noise**2
        slope = scale * (self.cross[:, :size] @ weights) / noise**2
        precision = jnp.eye(size) + scale[:, None] * self.cross[:, :size, :size] * scale / noise**2
        tril = jnp.linalg.cholesky(precision)
        white = solve_triangular(tril, slope[..., None], lower=True)
        mean = solve_triangular(tril, white, lower=True, trans=1)[..., 0]
        log_det = jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum()
        value = self._constant(noise) - squares / 2 + (white**2).sum() / 2 - log_det
        return value, mean, tril

    def effects_density(self, values: Values, effect: Any) -> Any:
        """The log density of raw effects given all else."""
        _, mean, tril = self.marginal(values)
        white = jnp.einsum("jkl,jk->jl", tril, effect - mean)
        log_det = jnp.log(jnp.diagonal(tril, axis1=-2, axis2=-1)).sum()
        return log_det - (white**2).sum() / 2 - white.size / 2 * jnp.log(2 * jnp.pi)

    def effects(self, values: Values, key: jax.Array) -> Any:
        """Draws raw effects given all else, of shape ``(J, K)``."""
        _, mean, tril = self.marginal(values)
        noise = jax.random.normal(key, mean.shape)[..., None]
        return mean + solve_triangular(tril, noise, lower=True, trans=1)[..., 0]

    def _constant(self, noise: Any) -> Any:
        return -self.count * (jnp.log(noise) + 0.5 * jnp.log(2 * jnp.pi))

    def sites(self, values: Values, form: str) -> dict[str, np.ndarray]:
        """Gives draws, of shape ``(n, ...)``, under the names of both targets' sites."""
        sites = {name: np.array(value) for name, value in (values | self.derive(values)).items()}
        scale, _, loc, _ = (np.asarray(part) for part in self.parts(values))
        effect = np.array(values["effect"])
        if form == "centered":
            effect = (effect - loc[:, None]) / scale[:, None]
        for suffix, value in (("_raw", effect), ("", loc[:, None] + scale[:, None] * effect)):
            split = np.moveaxis(value, -1, 0) if value.shape[1] > 1 else [value[:, 0]]
            columns = zip(self.names, split, strict=True)
            sites |= {name + suffix: column for name, column in columns}
        return sites

    def values(self, sites: dict[str, Any]) -> Values:
        """Gives the twin's values at one point of either target."""
        values = {name: jnp.asarray(sites[name]) for name in self.priors}
        ends = [name if name in sites else f"{name}_raw" for name in self.names]
        effect = np.stack([np.asarray(sites[name]) for name in ends], -1)
        return values | {"effect": jnp.asarray(effect.T if len(self.cross) == 1 else effect)}


def _radon(target: Target, *, slopes: bool) -> Twin:
    county, *columns, count = target.args
    *others, y = (column.numpy() for column in columns)
    one = np.ones_like(y)
    rows = np.stack([one, *others, y], -1)
    cross = np.zeros((count, rows.shape[-1], rows.shape[-1]))
    np.add.at(cross, county.numpy(), rows[:, :, None] * rows[:, None, :])
    half, wide = dist.HalfNormal(1.0), dist.Normal(0.0, 10.0)
    if slopes:
        names = ("alpha", "beta")
        priors = {"sigma_y": half} | {f"sigma_{n}": half for n in names}
        priors |= {f"mu_{n}": wide for n in names}
    else:
        names = ("alpha",)
        priors = {"sigma_alpha": half, "sigma_y": half, "mu_alpha": wide}
        priors["beta"] = dist.Normal(0.0, 10.0).expand([2]).to_event(1)

    def parts(v: Values) -> Parts:
        scale, loc = (jnp.stack([v[f"{part}_{n}"] for n in names], -1) for part in ("sigma", "mu"))
        return scale, v["sigma_y"], loc, jnp.zeros(0) if slopes else v["beta"]

    return Twin(priors, parts, jnp.asarray(cross), len(y), names)


def _horseshoe(target: Target, *, auxiliary: bool) -> Twin:
    design, y = (value.numpy() for value in target.args)
    rows = np.concatenate([design, y[:, None]], -1)
    size = design.shape[-1]
    priors = {"overall": dist.HalfCauchy(1.0), "noise": dist.HalfNormal(1.0)}
    if auxiliary:
        priors["size"] = dist.HalfNormal(1.0).expand([size]).to_event(1)
        priors["rate"] = dist.Gamma(0.5, 0.5).expand([size]).to_event(1)
    else:
        priors["local"] = dist.HalfCauchy(1.0).expand([size]).to_event(1)

    def derive(v: Values) -> Values:
        return {"local": v["size"] / jnp.sqrt(v["rate"])} if auxiliary else {}

    def parts(v: Values) -> Parts:
        scale = v["overall"][..., None] * (v | derive(v))["local"]
        return scale, v["noise"], jnp.zeros_like(scale), jnp.zeros(0)

    return Twin(priors, parts, jnp.asarray(rows.T @ rows)[None], len(y), ("beta",), derive)


def twin(target: Target, form: str) -> Twin:
    """Gives the twin of a radon or a horseshoe target, the same for both of its forms."""
    if target.name.startswith("horseshoe"):
        return _horseshoe(target, auxiliary=form == "auxiliary")
    return _radon(target, slopes="slopes" in target.name)
