# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""NUTS in a flow's base coordinates, where the posterior is nearly a standard normal."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.distributions.util import sum_rightmost
from pyro.infer import NUTS
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor
from tqdm.auto import tqdm

from pyro_flows.diagnostics import Remark
from pyro_flows.distributions import StandardNormal
from pyro_flows.errors import GuideError, OptionError
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference import exact
from pyro_flows.inference.lockstep import Ask, in_lockstep
from pyro_flows.inference.posterior import Posterior
from pyro_flows.transforms import CholeskyAffine, Layer

# Chains start at so many times a draw of the base; nearer where the density isn't finite there.
WIDTHS = (2.0, 1.0, 0.5)
CANDIDATES = 64


def neutra_nuts(
    posterior: Posterior,
    num_samples: int = 1000,
    *,
    warmup_steps: int = 500,
    num_chains: int = 4,
    target_accept_prob: float = 0.8,
    max_tree_depth: int = 10,
    full_mass: bool = False,
    seed: int | None = None,
    progress: bool = True,
) -> Any:
    """Exact draws by Pyro's NUTS in the coordinates of a fit's flow ("NeuTra").

    The chains run in the base of the flow: where the fit is good the posterior is nearly a
    standard normal there, however bent it is in the model's coordinates, so steps are long and a
    trajectory takes a few gradients. Where the fit is poor the draws are right all the same, only
    slower. They start over-dispersed, at twice a draw of the base and at its mirror image, so that
    R-hat can show that they disagree. Modes that no chain finds it can't show.

    Args:
        posterior: from ``FlowVI(model).run(...)`` or ``assess``; of an ``AutoFlow``, or of any
            ``AutoContinuous`` that is a transform of a base (``AutoMultivariateNormal``: NUTS
            with that preconditioner).
        num_samples: draws of each chain, after the warm-up.
        warmup_steps: draws that are used to adapt step size and mass matrix, and thrown away.
        num_chains: number of chains. They take their gradients together, so four cost hardly
            more time than one.
        target_accept_prob: raise it (0.95) where transitions diverge.
        max_tree_depth: a trajectory takes at most ``2**max_tree_depth`` gradients.
        full_mass: adapt a dense mass matrix; for affine guides that miss correlations.
        seed: of all random numbers; by default it follows from the posterior's. The global random
            state is left as it was.
        progress: show a progress bar.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree``: groups as of ``Posterior.to_arviz``, but
        for the prior's, with ``num_chains`` chains. sample_stats: ``lp`` (unconstrained),
        ``acceptance_rate``, ``diverging``, ``n_steps``, ``tree_depth``, ``step_size``.
        Attributes: ``rhat_max``, ``ess_bulk_min``, ``ess_tail_min`` (the worst over all elements
        of all latents), ``acceptance_rate``, ``divergences``, ``max_tree_depth_reached``,
        ``gradients`` (of this call, warm-up included), ``gradients_training``, ``seconds``,
        ``warnings``.

    Raises:
        GuideError: the log joint is random; or the guide has no single base: of a mixture of
            flows ask for :func:`independence_metropolis`.
        OptionError: a number that makes no sense.

    Warns:
        UserWarning: R-hat is above 1.01, effective draws are few, transitions diverged, or
            trajectories were cut off.

    In float32 the energy is known to about 1e-7 of its size: from a log joint of 1e5 on, rounding
    is rejected as if it were a mistake of the integrator, and steps get short. Fit in float64.

    Cost: mostly 3 to 15 gradients of the log joint, and passes of the flow forward and back, for
    each draw; times 1000 where the density in the base is narrow somewhere.

    Reference: Hoffman et al., NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural
    transport, 2019, arXiv:1903.03704.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> posterior = FlowVI(model, num_steps=20, progress=False).run()
        >>> exact = neutra_nuts(
        ...     posterior, num_samples=200, warmup_steps=50, num_chains=2, progress=False
        ... )
        >>> dict(exact.posterior["x"].sizes), exact.attrs["divergences"]
        ({'chain': 2, 'draw': 200, 'x_dim_0': 2}, 0)
    """
    begun, name = time.perf_counter(), "neutra_nuts"
    seed = exact.check(
        name,
        posterior,
        seed,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        max_tree_depth=max_tree_depth,
    )
    if not 0.0 < target_accept_prob < 1.0:
        raise OptionError(
            f"neutra_nuts expected 0 < target_accept_prob < 1, but got {target_accept_prob!r}. "
            "0.8 is the default."
        )
    total = num_chains * (warmup_steps + num_samples)
    with (
        exact.under(posterior, seed),
        pyro.validation_enabled(False),
        tqdm(total=total, disable=not progress, desc="NeuTra-NUTS") as bar,
    ):
        base = _Base(posterior)

        def chain(start: Tensor) -> Any:
            def run(ask: Ask) -> _Run:
                kernel = NUTS(
                    potential_fn=lambda params: _Potential.apply(params["u"], ask),
                    target_accept_prob=target_accept_prob,
                    max_tree_depth=max_tree_depth,
                    full_mass=full_mass,
                )
                kernel.initial_params = {"u": start}
                return _run(kernel, num_samples, warmup_steps, bar)

            return run

        starts = base.starts(num_chains)
        runs = in_lockstep(base.log_joint.value_and_grad, [chain(start) for start in starts])
        gradients = sum(run.gradients for run in runs)
        z, lp = base.out(torch.cat([run.u for run in runs]))
    stats = {key: np.stack([run.stats[key] for run in runs]) for key in runs[0].stats}
    stats["lp"] = lp.reshape(num_chains, -1)
    deepest = 2**max_tree_depth - 1
    attrs = {
        "inference_method": "NeuTra-NUTS",
        "acceptance_rate": float(stats["acceptance_rate"].mean()),
        "divergences": int(stats["diverging"].sum()),
        "max_tree_depth_reached": int((stats["n_steps"] >= deepest).sum()),
        "gradients": gradients,
        "warmup_steps": warmup_steps,
    }
    remarks = _remarks(attrs, num_chains * num_samples)
    z = z.reshape(num_chains, num_samples, -1)
    return exact.chains_to_arviz(posterior, z, stats, attrs, remarks, seed=seed, begun=begun)


@dataclass
class _Run:
    """One chain: draws ``(S, D)`` in the base, what happened at each, and gradients taken."""

    u: Tensor
    stats: dict[str, NDArray[Any]]
    gradients: int


def _run(kernel: NUTS, num_samples: int, warmup_steps: int, bar: Any) -> _Run:
    asked = [0]
    potential = kernel.potential_fn

    def counted(params: dict[str, Tensor]) -> Tensor:
        asked[0] += 1
        return potential(params)

    kernel.potential_fn = counted
    kernel.setup(warmup_steps)
    params = kernel.initial_params
    draws: list[Tensor] = []
    steps, sizes = np.zeros(num_samples, dtype=int), np.zeros(num_samples)
    rates = np.zeros(num_samples)
    for i in range(warmup_steps + num_samples):
        before = asked[0]
        params = kernel.sample(params)
        bar.update()
        n = i - warmup_steps
        if n >= 0:
            draws.append(params["u"].detach().clone())
            steps[n], sizes[n] = asked[0] - before, kernel.step_size
            rates[n] = kernel._mean_accept_prob * (n + 1)  # Pyro keeps the mean so far
    diverging = np.zeros(num_samples, dtype=bool)
    diverging[kernel.diagnostics()["divergences"]] = True
    stats = {
        "acceptance_rate": np.clip(np.diff(rates, prepend=0.0), 0.0, 1.0),
        "diverging": diverging,
        "n_steps": steps,
        "tree_depth": np.frexp(steps)[1],  # doublings begun: 1 for 1, 2 for 2 and 3, ...
        "step_size": sizes,
    }
    return _Run(torch.stack(draws), stats, asked[0])


class _Potential(torch.autograd.Function):
    """Minus the log joint at a point of the base, its gradient found on the way."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, ask: Ask) -> Tensor:
        value, gradient = ask(u)
        ctx.save_for_backward(gradient)
        # A density of +inf is a fault, and would hold the chain for ever: like NaN, it diverges.
        return torch.where(value == math.inf, math.nan, -value)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return -along[0] * gradient, None


class _Base:
    """The base of a posterior's guide, and the log joint there."""

    def __init__(self, posterior: Posterior) -> None:
        self.guide = posterior.guide
        self.through, self.base = _parts(self.guide, posterior.args, posterior.kwargs)
        self.log_joint = _BaseLogJoint(
            posterior.log_joint.model,
            self.guide,
            posterior.args,
            posterior.kwargs,
            through=self.through,
        )

    @torch.no_grad()
    def starts(self, n: int) -> Tensor:
        """Over-dispersed points of finite density, ``(n, D)``, mirrored pairs if there are any.

        Of a pair the two are on opposite sides of whatever divides the posterior in the middle.
        """
        for width in WIDTHS:
            u = width * self.base.sample((CANDIDATES + n,))
            u = torch.stack([u, -u], 1).flatten(0, 1)
            inside = torch.isfinite(self.log_joint.in_chunks(u))
            pairs = inside.reshape(-1, 2).all(1).repeat_interleave(2)
            found = torch.cat([u[pairs], u[inside & ~pairs]])
            if len(found) >= n:
                return found[:n]
        raise exact.no_finite_start("neutra_nuts")

    @torch.no_grad()
    def out(self, u: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Draws of the base in the model's unconstrained coordinates, and the log joint there."""
        log_p = self.log_joint.in_chunks(u)
        pairs = [self.through.forward_and_ladj(part) for part in u.split(10_000)]
        z, ladj = (torch.cat(part) for part in zip(*pairs, strict=True))
        return z.cpu().double().numpy(), (log_p - ladj).cpu().double().numpy()


class _BaseLogJoint(LogJoint):
    """A log joint whose coordinates are a base's, near zero."""

    def _probe(self) -> Tensor:
        parameter = next(self.guide.parameters())
        generator = torch.Generator(device="cpu").manual_seed(0)
        noise = torch.randn(
            3, self.guide.latent_dim, generator=generator, dtype=torch.float64, device="cpu"
        )
        return 0.5 * noise.to(parameter)


def _parts(
    guide: AutoContinuous, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Layer, dist.TorchDistribution]:
    """The layer from base to unconstrained vector, and the base."""
    if isinstance(guide, AutoFlow):
        if guide.modes > 1:
            raise GuideError(
                f"neutra_nuts expected a guide of one flow, but this one is a mixture of "
                f"{guide.modes}, which has no single base where chains could run. Use "
                "independence_metropolis(posterior), which jumps between modes."
            )
        return guide.get_transform(), guide.get_base_dist()
    with torch.no_grad():
        try:
            base, transform = guide.get_base_dist(), guide.get_transform(*args, **kwargs)
        except NotImplementedError:
            return _affine(guide.get_posterior(*args, **kwargs), type(guide).__name__)
    return cast(Layer, _PyroTransform(transform)), base


def _affine(posterior: Any, name: str) -> tuple[Layer, dist.TorchDistribution]:
    """The same of a normal that isn't given as a transform."""
    if not isinstance(posterior, dist.LowRankMultivariateNormal | dist.MultivariateNormal):
        raise GuideError(
            f"neutra_nuts expected a guide that is a transform of a base, but got {name}. Use "
            "AutoFlow, or independence_metropolis(posterior): it takes any guide with a density."
        )
    loc = posterior.loc
    layer = CholeskyAffine(len(loc)).to(loc)
    layer.set(loc=loc, scale_tril=posterior.scale_tril)
    return layer, StandardNormal(len(loc)).to(loc)()


class _PyroTransform:
    """What a log joint asks of a layer, by a transform of torch or Pyro."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def forward_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.transform(x)
        ladj = self.transform.log_abs_det_jacobian(x, y)
        return y, sum_rightmost(ladj, 1 - self.transform.codomain.event_dim)


def _remarks(attrs: dict[str, Any], draws: int) -> list[Remark]:
    remarks = []
    if attrs["divergences"]:
        remarks.append(
            Remark(
                f"{attrs['divergences']} of {draws} transitions diverged: the posterior has "
                "corners that steps of this size don't enter.",
                "target_accept_prob=0.95; train the fit longer; or reparametrise the model.",
                "divergences",
            )
        )
    if attrs["max_tree_depth_reached"] > draws // 20:
        remarks.append(
            Remark(
                f"{attrs['max_tree_depth_reached']} of {draws} trajectories were cut off at "
                "max_tree_depth: they are longer in the flow's coordinates than they should be.",
                "train the fit longer; or raise max_tree_depth.",
                "trajectories-cut-off",
            )
        )
    return remarks
