# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Peers in torch: zuko, nflows, normflows and Pyro's own flows, guides and sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import targets
import torch
from contender import Contender, Facts, Spec
from models import model_and_args
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.nn import DenseNN
from torch import Tensor, nn
from torch_steps import count, drawing, maximum_likelihood

# Density: spline couplings like ours. All networks are alike, and so are masks, bins and box.


class Network(nn.Sequential):
    """A conditioner for nflows and normflows, which read the width to scale what it gives."""

    hidden_features = targets.HIDDEN[-1]

    def __init__(self, kept: int, outputs: int) -> None:
        widths = [kept, *targets.HIDDEN]
        linears = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        parts = [part for linear in linears for part in (linear, nn.Tanh())]
        super().__init__(*parts, nn.Linear(widths[-1], outputs))

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        """Map what is kept; there is no context."""
        return super().forward(x)


def zuko_density(spec: Spec) -> Contender:
    """zuko's general coupling with its monotonic splines."""
    import zuko

    bins = targets.BINS
    couplings = [
        zuko.flows.GeneralCouplingTransform(
            spec["dim"],
            mask=~mask,  # zuko marks what is kept
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=targets.HIDDEN,
            activation=nn.Tanh,
        )
        for mask in _masks(spec)
    ]
    zeros = torch.zeros(spec["dim"])
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, zeros, zeros + 1, buffer=True
    )
    flow = zuko.flows.Flow(couplings, base)
    return maximum_likelihood(lambda x: flow().log_prob(x), flow.parameters(), _rows(spec))


def nflows_density(spec: Spec) -> Contender:
    """nflows' piecewise rational-quadratic couplings."""
    from nflows import distributions, flows, transforms

    couplings = [
        transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, Network, num_bins=targets.BINS, tails="linear", tail_bound=targets.BOUND
        )
        for mask in _masks(spec)
    ]
    flow = flows.Flow(
        transforms.CompositeTransform(couplings), distributions.StandardNormal([spec["dim"]])
    )
    return maximum_likelihood(flow.log_prob, flow.parameters(), _rows(spec))


def normflows_density(spec: Spec) -> Contender:
    """normflows' coupled splines."""
    import normflows
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling

    layers = []
    for mask in _masks(spec):
        layer = normflows.flows.CoupledRationalQuadraticSpline(spec["dim"], 1, 1)
        # As it comes it has residual networks, and moves the other half too, by splines without a
        # network: more work than the others do.
        layer.prqct = PiecewiseRationalQuadraticCoupling(
            mask, Network, num_bins=targets.BINS, tails="linear", tail_bound=targets.BOUND
        )
        layers.append(layer)
    base = normflows.distributions.DiagGaussian(spec["dim"], trainable=False)
    flow = normflows.NormalizingFlow(base, layers)
    return maximum_likelihood(flow.log_prob, flow.parameters(), _rows(spec))


def pyro_density(spec: Spec) -> Contender:
    """Pyro's spline couplings: the quadratic ones, which ``spline_coupling`` can't make."""
    dim, bins = spec["dim"], targets.BINS
    kept, moved = dim // 2, dim - dim // 2
    parts: list[Any] = []
    for _ in range(targets.LAYERS):
        outputs = [moved * bins, moved * bins, moved * (bins - 1)]
        net = DenseNN(kept, list(targets.HIDDEN), outputs, nonlinearity=nn.Tanh())
        coupling = T.SplineCoupling(
            dim, kept, net, bins, targets.BOUND, order="quadratic", identity=True
        )
        parts += [coupling, T.Permute(torch.arange(dim).flip(0))]
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(dim), 1.0).to_event(1), parts[:-1])
    parameters = [p for part in parts[::2] for p in part.parameters()]
    # Else the batch, the same in every step, would be looked up instead of transformed.
    return maximum_likelihood(flow.log_prob, parameters, _rows(spec), flow.clear_cache)


def _masks(spec: Spec) -> list[Tensor]:
    # Not imported above: starting the sampler that is timed shouldn't import us.
    from pyro_flows.ops import alternating_masks

    return list(alternating_masks(spec["dim"], targets.LAYERS))


def _rows(spec: Spec) -> Tensor:
    return torch.as_tensor(targets.rows(spec["dim"]))


# An ELBO step, and a whole run of NUTS.


class Affine(dist.TransformModule):
    """Pyro's affine transform, with parameters that are trained."""

    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__(cache_size=1)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim, dim))

    def _affine(self) -> T.LowerCholeskyAffine:
        return T.LowerCholeskyAffine(self.loc, self.lower.tril(-1) + self.log_scale.exp().diag())

    def _call(self, x: Tensor) -> Tensor:
        return self._affine()(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._affine().inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the log-scales."""
        return self.log_scale.sum().expand(x.shape[:-1])


def pyro_vi_step(spec: Spec) -> Contender:
    """``SVI.step`` of a guide of affine couplings and an affine.

    Not by ``JitTrace_ELBO``, which fails for guides whose transforms are modules (Pyro 1.9.2).
    """
    pyro.clear_param_store()

    def transform(dim: int) -> dist.ComposeTransformModule:
        parts: list[Any] = []
        for _ in range(targets.COUPLINGS):
            parts += [
                T.affine_coupling(dim, [spec["width"]]),
                T.Permute(torch.arange(dim).flip(0)),
            ]
        return dist.ComposeTransformModule([*parts, Affine(dim)])

    model, args = model_and_args(spec)
    guide = AutoNormalizingFlow(model, transform)
    optimiser = pyro.optim.Adam({"lr": targets.LEARNING_RATE})
    svi = SVI(
        model,
        guide,
        optimiser,
        Trace_ELBO(num_particles=targets.PARTICLES, vectorize_particles=True),
    )
    losses = [0.0]

    def steps(n: int) -> None:
        for _ in range(n):
            losses[0] = svi.step(*args)

    def judge() -> Facts:
        return {"loss": float(losses[0]), "parameters": count(guide.parameters())}

    return Contender(steps, judge)


def pyro_nuts(spec: Spec) -> Contender:
    """A whole run of NUTS, its log density compiled."""
    torch.set_default_dtype(torch.float64)
    model, args = model_and_args(spec, torch.float64)
    found: list[MCMC] = []

    def steps(n: int) -> None:
        for _ in range(n):
            pyro.set_rng_seed(2 * spec["round"] + len(found))
            kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
            mcmc = MCMC(kernel, spec["draws"], warmup_steps=spec["warmup"], disable_progbar=True)
            mcmc.run(*args)
            found.append(mcmc)

    def judge() -> Facts:
        draws = {name: value.numpy() for name, value in found[-1].get_samples().items()}
        diverged = found[-1].diagnostics()["divergences"].values()
        return {"divergences": sum(len(chain) for chain in diverged), **targets.errors(**draws)}

    return Contender(steps, judge)


def zuko_sampling(spec: Spec) -> Contender:
    """Draws of a flow that was trained as ours."""
    import sampling_speed

    flow = sampling_speed.zukos(spec["kind"])
    sampling_speed.train(flow, spec["training"], seed=0)
    return drawing(lambda: flow().sample((spec["draws"],)))


CONTENDERS: dict[tuple[str, str], Callable[[Spec], Contender]] = {
    ("density", "zuko"): zuko_density,
    ("density", "nflows"): nflows_density,
    ("density", "normflows"): normflows_density,
    ("density", "Pyro"): pyro_density,
    ("vi_step", "Pyro"): pyro_vi_step,
    ("vi_total", "Pyro NUTS"): pyro_nuts,
    ("sampling", "zuko"): zuko_sampling,
}
