# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Peers in JAX: flowjax's flows, NumPyro's guides and sampler. Steps run in one compiled loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import targets
from contender import Contender, Facts, Spec
from flowjax import flows
from flowjax.bijections import RationalQuadraticSpline
from flowjax.distributions import Normal
from flowjax.train.losses import MaximumLikelihoodLoss
from jax import lax
from jax import numpy as jnp
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from paramax import NonTrainable


def looped(step: Callable[[Any], Any], start: Any, judge: Callable[[Any], Facts]) -> Contender:
    """Steps from state to state, any number of them by one compiled loop."""

    @jax.jit
    def many(n: Any, state: Any) -> Any:
        return lax.fori_loop(0, n, lambda _, now: step(now), state)

    states = [start]

    def steps(n: int) -> None:
        states[0] = jax.block_until_ready(many(n, states[0]))

    return Contender(steps, lambda: judge(states[0]))


def count(tree: Any) -> int:
    """How many numbers are trained, masked weights included."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# flowjax.


def spline() -> RationalQuadraticSpline:
    """Its knots are the inner ones: one less than bins."""
    return RationalQuadraticSpline(knots=targets.BINS - 1, interval=targets.BOUND)


def density(spec: Spec) -> Contender:
    """A maximum-likelihood step of spline couplings."""
    flow = flows.coupling_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(spec["dim"])),
        transformer=spline(),
        flow_layers=targets.LAYERS,
        nn_width=targets.HIDDEN[0],
        nn_depth=len(targets.HIDDEN),
        nn_activation=jnp.tanh,
    )
    parameters, static = equinox.partition(
        flow, equinox.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable)
    )
    optimiser, loss = optax.adam(targets.LEARNING_RATE), MaximumLikelihoodLoss()
    x = jnp.asarray(targets.rows(spec["dim"]))

    def step(state: Any) -> Any:
        parameters, memory, _ = state
        value, gradient = jax.value_and_grad(loss)(parameters, static, x)
        updates, memory = optimiser.update(gradient, memory, parameters)
        return optax.apply_updates(parameters, updates), memory, value

    start = (parameters, optimiser.init(parameters), jnp.zeros(()))
    facts = {"parameters": count(parameters)}
    return looped(step, start, lambda state: {"loss": float(state[2]), **facts})


def sampling(spec: Spec) -> Contender:
    """Draws of an autoregressive flow, by its one pass for each coordinate.

    Its cost is the same whatever its parameters are, so it isn't trained.
    """
    flow = flows.masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(spec["dim"])),
        transformer=spline() if spec["kind"] == "nsf" else None,
        flow_layers=targets.LAYERS,
        nn_width=targets.HIDDEN[0],
        nn_depth=len(targets.HIDDEN),
    )
    parameters, static = equinox.partition(flow, equinox.is_inexact_array)

    @jax.jit
    def draw(parameters: Any, key: Any) -> Any:
        return equinox.combine(parameters, static).sample(key, (spec["draws"],))

    keys = (jax.random.key(seed) for seed in itertools.count())

    def steps(n: int) -> None:
        for _ in range(n):
            draw(parameters, next(keys)).block_until_ready()

    return Contender(steps)


# NumPyro.


def eight_schools(y: Any, sigma: Any) -> None:
    """Centred eight schools."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def hierarchy(y: Any, sigma: Any) -> None:
    """88 effects around a mean, centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def model_and_args(spec: Spec) -> tuple[Any, Any]:
    """The model that a spec names, with its arguments."""
    args = tuple(jnp.asarray(a) for a in targets.observations(spec["model"]))
    return (eight_schools if spec["model"] == "eight schools" else hierarchy), args


def vi_step(spec: Spec, guide: str) -> Contender:
    """``SVI.update`` with one of its guides."""
    model, args = model_and_args(spec)
    svi = SVI(
        model,
        getattr(autoguide, guide)(model),
        numpyro.optim.Adam(targets.LEARNING_RATE),
        Trace_ELBO(num_particles=targets.PARTICLES),
    )
    start = svi.init(jax.random.key(0), *args)
    facts = {"parameters": count(svi.get_params(start))}
    return looped(
        lambda state: svi.update(state[0], *args),
        (start, jnp.zeros(())),
        lambda state: {"loss": float(state[1]), **facts},
    )


def nuts(spec: Spec) -> Contender:
    """A whole run of NUTS; the first compiles it."""
    numpyro.enable_x64()
    model, args = model_and_args(spec)
    mcmc = MCMC(
        NUTS(model),
        num_warmup=spec["warmup"],
        num_samples=spec["draws"],
        progress_bar=False,
    )
    seeds = itertools.count(2 * spec["round"])

    def steps(n: int) -> None:
        for _ in range(n):
            mcmc.run(jax.random.key(next(seeds)), *args)
            jax.block_until_ready(mcmc.get_samples())

    def judge() -> Facts:
        draws = {name: np.asarray(value) for name, value in mcmc.get_samples().items()}
        diverged = mcmc.get_extra_fields()["diverging"]
        return {"divergences": int(diverged.sum()), **targets.errors(**draws)}

    return Contender(steps, judge)


CONTENDERS: dict[tuple[str, str], Callable[[Spec], Contender]] = {
    ("density", "flowjax"): density,
    ("sampling", "flowjax"): sampling,
    ("vi_total", "NumPyro NUTS"): nuts,
    **{
        ("vi_step", f"NumPyro {guide}"): partial(vi_step, guide=guide)
        for guide in ("AutoMultivariateNormal", "AutoIAFNormal", "AutoBNAFNormal")
    },
}
