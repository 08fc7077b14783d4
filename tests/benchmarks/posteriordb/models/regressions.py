# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear regressions: nes, mesquite, earnings, kidiq, blr, diamonds."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .common import Builder, Data, Entries, Port, design, flat_vector, linear, vector

# Models


def flat_regression(x: Tensor, y: Tensor) -> None:
    """Flat in the coefficients and in sigma (nes, mesquite, earnings, kidiq_with_mom_work)."""
    beta = pyro.sample("beta", flat_vector(x.shape[-1]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(linear(x, beta), sigma), obs=y)


def half_cauchy_regression(x: Tensor, y: Tensor, scale: float) -> None:
    """Flat coefficients and sigma ~ HalfCauchy(scale) (kidiq)."""
    beta = pyro.sample("beta", flat_vector(x.shape[-1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(scale)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(linear(x, beta), sigma), obs=y)


def bayesian_regression(x: Tensor, y: Tensor) -> None:
    """Normal coefficients and a half-normal sigma (blr)."""
    prior = dist.Normal(y.new_tensor(0.0), 10.0).expand([x.shape[-1]]).to_event(1)
    beta = pyro.sample("beta", prior)
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(10.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(linear(x, beta), sigma), obs=y)


def diamonds(x: Tensor, y: Tensor) -> None:
    """Prices of diamonds: 24 centred columns, and an intercept that belongs to them."""
    prior = dist.Normal(y.new_tensor(0.0), 1.0).expand([x.shape[-1]]).to_event(1)
    b = pyro.sample("b", prior)
    intercept = pyro.sample("Intercept", dist.StudentT(y.new_tensor(3.0), 8.0, 10.0))
    half_t = dist.FoldedDistribution(dist.StudentT(y.new_tensor(3.0), 0.0, 10.0))
    sigma = pyro.sample("sigma", half_t)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + linear(x, b), sigma), obs=y)


# Builders


def _nes(data: Data) -> Port:
    ideology, race, *rest = _columns(data, "real_ideo", "race_adj", "educ1", "gender", "income")
    ages = _levels(data["age_discrete"], 2, 3, 4)
    x = design(ideology, race, *ages, *rest)
    return Port(flat_regression, (x, vector(data["partyid7"])))


def _mesquite(data: Data) -> Port:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    return Port(flat_regression, (design(*_columns(data, *names)), vector(data["weight"])))


def _logmesquite(data: Data) -> Port:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    logs = [column.log() for column in _columns(data, *names)]
    x = design(*logs, vector(data["group"]))
    return Port(flat_regression, (x, vector(data["weight"]).log()))


def _logmesquite_logva(data: Data) -> Port:
    volume, area, _ = _log_canopy(data)
    x = design(volume, area, vector(data["group"]))
    return Port(flat_regression, (x, vector(data["weight"]).log()))


def _logmesquite_logvas(data: Data) -> Port:
    height, density, group = _columns(data, "total_height", "density", "group")
    x = design(*_log_canopy(data), height.log(), density.log(), group)
    return Port(flat_regression, (x, vector(data["weight"]).log()))


def _log_canopy(data: Data) -> tuple[Tensor, Tensor, Tensor]:
    """The logs of the canopy's volume, area and shape."""
    diam1, diam2, height = _columns(data, "diam1", "diam2", "canopy_height")
    return (diam1 * diam2 * height).log(), (diam1 * diam2).log(), (diam1 / diam2).log()


def _earnings(outcome: Callable[[Tensor], Tensor], *names: str) -> Builder:
    def build(data: Data) -> Port:
        x = design(*_columns(data, *names))
        return Port(flat_regression, (x, outcome(vector(data["earn"]))))

    return build


def _earnings_interaction(change: Callable[[Tensor], Tensor]) -> Builder:
    def build(data: Data) -> Port:
        height, male = _columns(data, "height", "male")
        x = design(change(height), male, change(height) * male)
        return Port(flat_regression, (x, vector(data["earn"]).log()))

    return build


def _kidiq(*names: str) -> Builder:
    def build(data: Data) -> Port:
        x = design(*_columns(data, *names))
        return Port(half_cauchy_regression, (x, vector(data["kid_score"]), 2.5))

    return build


def _kidiq_interaction(
    change_hs: Callable[[Tensor], Tensor], change_iq: Callable[[Tensor], Tensor]
) -> Builder:
    def build(data: Data) -> Port:
        hs, iq = change_hs(vector(data["mom_hs"])), change_iq(vector(data["mom_iq"]))
        return Port(flat_regression, (design(hs, iq, hs * iq), vector(data["kid_score"])))

    return build


def _kidscore_mom_work(data: Data) -> Port:
    x = design(*_levels(data["mom_work"], 2, 3, 4))
    return Port(flat_regression, (x, vector(data["kid_score"])))


def _blr(data: Data) -> Port:
    return Port(bayesian_regression, (vector(data["X"]), vector(data["y"])))


def _diamonds(data: Data) -> Port:
    x = vector(data["X"])[:, 1:]
    return Port(diamonds, (x - x.mean(0), vector(data["Y"])))


def _columns(data: Data, *names: str) -> list[Tensor]:
    return [vector(data[name]) for name in names]


def _levels(values: list[int], *levels: int) -> list[Tensor]:
    """A column of zeros and ones for each level of a factor."""
    return [(torch.tensor(values) == level).to(torch.float64) for level in levels]


def _as_is(column: Tensor) -> Tensor:
    return column


def _centred(column: Tensor) -> Tensor:
    return column - column.mean()


def _standardised(column: Tensor) -> Tensor:
    return _centred(column) / column.std()  # divisor n - 1, as Stan's sd


def _half_standardised(column: Tensor) -> Tensor:
    return _standardised(column) / 2


# Registry

_YEARS = (1972, 1976, 1980, 1984, 1992, 2000)
ENTRIES: Entries = {
    **{f"nes{year}": (f"nes{year}-nes", _nes) for year in _YEARS},
    "mesquite": ("mesquite-mesquite", _mesquite),
    "logmesquite": ("mesquite-logmesquite", _logmesquite),
    "logmesquite_logva": ("mesquite-logmesquite_logva", _logmesquite_logva),
    "logmesquite_logvas": ("mesquite-logmesquite_logvas", _logmesquite_logvas),
    "kidscore_momiq": ("kidiq-kidscore_momiq", _kidiq("mom_iq")),
    "kidscore_momhs": ("kidiq-kidscore_momhs", _kidiq("mom_hs")),
    "kidscore_momhsiq": ("kidiq-kidscore_momhsiq", _kidiq("mom_hs", "mom_iq")),
    "kidscore_interaction_c": (
        "kidiq_with_mom_work-kidscore_interaction_c",
        _kidiq_interaction(_centred, _centred),
    ),
    "kidscore_interaction_c2": (
        "kidiq_with_mom_work-kidscore_interaction_c2",
        _kidiq_interaction(lambda hs: hs - 0.5, lambda iq: iq - 100),
    ),
    "kidscore_interaction_z": (
        "kidiq_with_mom_work-kidscore_interaction_z",
        _kidiq_interaction(_half_standardised, _half_standardised),
    ),
    "kidscore_mom_work": ("kidiq_with_mom_work-kidscore_mom_work", _kidscore_mom_work),
    "earn_height": ("earnings-earn_height", _earnings(_as_is, "height")),
    "logearn_height": ("earnings-logearn_height", _earnings(torch.log, "height")),
    "log10earn_height": ("earnings-log10earn_height", _earnings(torch.log10, "height")),
    "logearn_height_male": (
        "earnings-logearn_height_male",
        _earnings(torch.log, "height", "male"),
    ),
    "logearn_interaction": ("earnings-logearn_interaction", _earnings_interaction(_as_is)),
    "logearn_interaction_z": (
        "earnings-logearn_interaction_z",
        _earnings_interaction(_standardised),
    ),
    "blr": ("sblri-blr", _blr),
    "diamonds": ("diamonds-diamonds", _diamonds),
}
