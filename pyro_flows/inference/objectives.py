# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What FlowVI maximises, and the gradient it follows."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.distributions import (
    Flow,
    FlowDistribution,
    FlowMixtureDistribution,
    StandardNormal,
)
from pyro_flows.guides import AutoFlow, LogJoint, structure
from pyro_flows.training import INSIDE, Score

# Draws of each flow of a mixture, at least.
LEAST_OF_EACH = 8
# The share of draws outside the support from which on its edges are to be minded.
OUTSIDE = 0.01


class Objective:
    """The ELBO of a guide against a log joint: its gradient in training, its value held out.

    For an ``AutoFlow`` the gradient is the path gradient ("sticking the landing", Roeder et al.
    2017, arXiv:1703.09194): log q is differentiated through the draw but not through the
    parameters, whose direct term has mean zero. Its variance vanishes where q is the posterior.
    Where draws fall outside the support it is the score function's. Other guides, which may have
    no inverse, get the ordinary reparametrised gradient.

    Args:
        guide: an ``AutoContinuous`` that has been set up.
        log_joint: the model's; for an ``AutoFlow`` ``through`` its non-centring layer, so that the
            layer, which has nothing to train, is part of the recorded log joint.
        args, kwargs: the model's arguments, for guides whose posterior depends on them.
        heldout: number of held-out draws, made once and used for every state.

    Example:
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> guide = AutoFlow(model).setup()
        >>> Objective(guide, LogJoint(model, guide), heldout=100).score().values.shape
        torch.Size([100])
    """

    def __init__(
        self,
        guide: AutoContinuous,
        log_joint: LogJoint,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        heldout: int = 16_384,
    ) -> None:
        self.guide, self.log_joint = guide, log_joint
        self.args, self.kwargs = args, kwargs or {}
        self.gradients = 0
        self._count = 256 if log_joint.mode == "sequential" else heldout
        self.reread()

    def reread(self) -> None:
        """Look at the guide again, after its flow was put in the place of another."""
        guide = self.guide
        self.edges = False
        # Path gradients freeze the flow's own parameters for the inverse pass.
        self.parameters = [p for p in guide.parameters() if p.requires_grad]
        self._heldout: tuple[Tensor, Tensor | None] | None = None
        self._inner: Flow | None = None
        if isinstance(guide, AutoFlow):
            layers: list[Any] = list(guide.get_transform().layers)
            self._inner = Flow(
                layers if guide.noncentring is None else layers[:-1], guide._flow.base
            )
            with torch.no_grad(), structure.random_state_kept():
                torch.manual_seed(20_113)  # the same numbers for every flow
                self._heldout = self._noise(self._count)

    def gradient(self, particles: int) -> tuple[Tensor, Tensor]:
        """Leave the gradient of -ELBO on the parameters.

        Returns:
            The ELBO's estimate over finite particles, and how many were not, as tensors.
        """
        if self._inner is not None and self.edges and not self.log_joint.parameters:
            return self._score_gradient(self._inner(), particles)
        if self._inner is not None:
            return self._path_gradient(self._inner(), particles)
        return self._plain_gradient(particles)

    def price(self, particles: int) -> int:
        """Gradients that a step of so many particles takes: more where there are many modes."""
        modes = getattr(self.guide, "modes", 1)
        return particles if modes == 1 else modes * max(LEAST_OF_EACH, particles // modes)

    def _path_gradient(self, flow: FlowDistribution, particles: int) -> tuple[Tensor, Tensor]:
        drawn, weight = self._draws(flow, particles)
        self.gradients += len(drawn)
        outputs, along, elbo, masked = self.path(flow, drawn, weight)
        torch.autograd.backward(outputs, along)
        return elbo, masked

    def path(
        self, flow: FlowDistribution, drawn: Tensor, weight: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The path gradient as tensors to differentiate, and what to multiply them by.

        Args:
            flow: the guide without its non-centring layer.
            drawn: draws of its base, shape ``(P, D)``.
            weight: what each counts for, shape ``(P,)``.

        Returns:
            Outputs, the gradient of -ELBO by them, the ELBO's estimate over finite particles, and
            how many were not finite.
        """
        log_base, score = self._base_score(flow.base, drawn.detach())
        x, ladj, score = flow.transform.forward_and_score(drawn, score)
        value, gradient = self.log_joint.value_and_grad(x, accumulate=True)
        path = gradient - score
        finite = torch.isfinite(value) & torch.isfinite(path).all(-1)
        path = torch.where(finite.unsqueeze(-1), path, torch.zeros_like(path))
        ratio = torch.where(finite, value - (log_base - ladj), torch.zeros_like(value))
        # Particles outside the support count for nothing; those left share the weight.
        share = weight * finite / (weight.detach() * finite).sum().clamp_min(1e-30)
        fixed = share.detach()
        elbo = (fixed * ratio).sum()
        # The chain rule through x, and through the weights of a mixture, whose sum is constant.
        outputs, along = [x], [-fixed.unsqueeze(-1) * path]
        if share.requires_grad:
            outputs.append(share)
            along.append(elbo - ratio)
        return outputs, along, elbo, len(x) - finite.sum()

    def _base_score(self, base: dist.TorchDistribution, point: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of the base at points ``(P, D)``, and its gradient, both constants."""
        if isinstance(self.guide._flow.base, StandardNormal):
            with torch.no_grad():
                return base.log_prob(point), -point
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        try:
            point = point.requires_grad_()
            log_prob = base.log_prob(point)
            (score,) = torch.autograd.grad(log_prob.sum(), point)
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
        return log_prob.detach(), score

    def _score_gradient(self, flow: FlowDistribution, particles: int) -> tuple[Tensor, Tensor]:
        """The gradient where draws fall outside the support.

        A path ends at an edge: moved along paths alone, a guide leaks out of the support, and
        nothing tells it. The score function's gradient, (log p - log q - mean) times that of
        log q, is the whole one, edges included; its noise, too, vanishes where q is the posterior
        (Richter et al. 2020, VarGrad, arXiv:2010.10436). A tail that reaches into the support may
        be as good there as a guide that is inside: so the share inside counts a little more.
        """
        with torch.no_grad():
            drawn, weight = self._draws(flow, particles)
            x, _ = flow.transform.forward_and_ladj(drawn)
            value = self.log_joint.in_chunks(x)
        self.gradients += len(x)
        log_q = flow.log_prob(x)
        finite = torch.isfinite(value) & torch.isfinite(log_q.detach())
        ratio = torch.where(finite, value - log_q.detach(), torch.zeros_like(value))
        share = weight * finite / (weight * finite).sum().clamp_min(1e-30)
        mean = (share * ratio).sum()
        # The second term is the gradient of the log of the share inside.
        along = share * (ratio - mean) + INSIDE * (share - weight)
        log_q = torch.where(torch.isfinite(log_q), log_q, torch.zeros_like(log_q))
        (-(along * log_q).sum()).backward()
        return mean, len(x) - finite.sum()

    def _draws(self, flow: FlowDistribution, particles: int) -> tuple[Tensor, Tensor]:
        """Draws of the base with gradients, and what each counts for, ``(P, D)`` and ``(P,)``.

        Of a mixture as many from each flow, each worth its flow's weight, with the gradient in
        the weights: no flow is starved, and none chosen by chance.
        """
        base = flow.base
        if not isinstance(base, FlowMixtureDistribution):
            drawn = _draws_of(base, self.guide._flow.base, particles)
            return drawn, drawn.new_full((len(drawn),), 1.0 / len(drawn))
        count = self.price(particles) // len(base.components)
        noise = [
            _draws_of(component.base, made.base, count)
            for component, made in zip(base.components, self.guide._flow.base.flows, strict=True)
        ]
        drawn = base.rpush(torch.stack(noise)).flatten(0, 1)
        return drawn, (base.log_weights.exp() / count).repeat_interleave(count)

    def _plain_gradient(self, particles: int) -> tuple[Tensor, Tensor]:
        posterior = self.guide.get_posterior(*self.args, **self.kwargs)
        x = posterior.rsample((particles,))
        self.gradients += particles
        log_q = posterior.log_prob(x)
        value, gradient = self.log_joint.value_and_grad(x, accumulate=True)
        finite = torch.isfinite(value) & torch.isfinite(gradient).all(-1)
        count = finite.sum().clamp_min(1)
        gradient = torch.where(finite.unsqueeze(-1), gradient, torch.zeros_like(gradient))
        entropy = torch.where(finite, log_q, torch.zeros_like(log_q))
        ((entropy.sum() - (x * gradient).sum()) / count).backward()
        ratio = torch.where(finite, (value - log_q).detach(), torch.zeros_like(value))
        return ratio.sum() / count, particles - finite.sum()

    @torch.no_grad()
    def score(self) -> Score:
        """The ELBO of the state per held-out draw, and an upper estimate of the gap."""
        stochastic = self.log_joint.stochastic
        with structure.random_state_kept() if stochastic else nullcontext():
            if stochastic:  # the same minibatches for every state
                torch.manual_seed(20_112)
            _, log_p, log_q = self._draw(self._count, self._heldout)
        every = log_p - log_q
        ratio = every[torch.isfinite(every)]
        outside = (log_p == -math.inf).double().mean()
        self.edges = self.edges or float(outside) > OUTSIDE
        if len(ratio) < 2:
            return Score(every)
        gap = torch.logsumexp(ratio, 0) - math.log(len(ratio)) - ratio.mean()
        # Twice the standard error of the gap, whose leading term is half the variance of ratio.
        spread = (ratio - ratio.mean()).square()
        # A guide that hardly ever draws inside isn't as good as it gets.
        inside = math.log(len(ratio) / len(every))
        excess = float(gap + spread.std() / math.sqrt(len(ratio))) - INSIDE * inside
        return Score(every, excess if math.isfinite(excess) else math.inf)

    @torch.no_grad()
    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of the guide with log p and log q: ``(n, D)``, ``(n,)``, ``(n,)``."""
        x, log_p, log_q = self._draw(n)
        if self.log_joint.through is not None:
            x, ladj = self.log_joint.through.forward_and_ladj(x)
            log_p, log_q = log_p - ladj, log_q - ladj
        return x, log_p, log_q

    @torch.no_grad()
    def draw_inner(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same in the log joint's coordinates."""
        return self._draw(n)

    @torch.no_grad()
    def log_q(self, z: Tensor) -> Tensor:
        """Log density of the guide at points ``(n, D)`` in the log joint's coordinates."""
        if self._inner is None:
            return self.guide.get_posterior(*self.args, **self.kwargs).log_prob(z)
        return self._inner.log_prob(z)

    def _noise(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Random numbers for n draws: of the base, and to choose a flow where there are several.

        Flows of one mixture are made alike, so the first one's base serves them all.
        """
        base = self.guide.get_base_dist()
        if not isinstance(base, FlowMixtureDistribution):
            return base.sample((n,)), None
        noise = base.components[0].base.sample((n,))
        return noise, torch.rand(n, dtype=noise.dtype, device=noise.device)

    def _draw(
        self, n: int, noise: tuple[Tensor, Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same in the log joint's coordinates."""
        if self._inner is not None:
            flow = self._inner()
            draw, uniform = noise or self._noise(n)
            if uniform is not None:
                draw = flow.base.push(draw, uniform)
            x, ladj = flow.transform.forward_and_ladj(draw)
            log_q = flow.base.log_prob(draw) - ladj
        else:
            posterior = self.guide.get_posterior(*self.args, **self.kwargs)
            x = posterior.rsample((n,))
            log_q = posterior.log_prob(x)
        return x, self.log_joint.in_chunks(x), log_q


def mirrored_noise(base: Any, particles: int) -> Tensor:
    """Draws of a symmetric base in mirrored pairs: odd parts of the noise cancel."""
    half = base.rsample(((particles + 1) // 2,))
    return torch.cat([half, -half[: particles // 2]])


def _draws_of(base: Any, made: torch.nn.Module, particles: int) -> Tensor:
    """Draws of the base that a module has made, in mirrored pairs where it is symmetric."""
    if isinstance(made, StandardNormal):
        return mirrored_noise(base, particles)
    drawn: Tensor = base.rsample((particles,))
    return drawn
