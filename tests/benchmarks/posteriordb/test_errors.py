# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Errors of draws are none for the reference itself, and seen where there are some."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scoring import QUANTILES

from . import bars, synthetic, traps
from .errors import errors
from .fits import pyro_guide
from .tables import read, table
from .target import Moments, Target


@pytest.fixture(scope="module")
def mixture():
    return traps.targets()["mixture_90_10_opaque"]


def test_the_reference_has_no_error(mixture):
    found = errors(mixture, mixture.reference())
    assert found["met"]
    assert found["mean"] == found["log_sd"] == 0
    assert found["quantile"] < 1e-3
    assert found["modes"] < 0.01


def test_one_mode_of_two(mixture):
    sites = {name: torch.as_tensor(value) for name, value in mixture.reference().items()}
    z = mixture.unconstrain(sites)
    one = {name: value[mixture.modes.assign(z) == 0] for name, value in sites.items()}
    found = errors(mixture, one)
    assert found["modes"] == pytest.approx(0.1, abs=0.01)
    assert not found["met"]


def test_moments_that_do_not_exist_are_not_judged():
    target = traps.targets()["cauchy_opaque"]
    found = errors(target, target.reference())
    assert found["mean"] is None
    assert found["log_sd"] is None
    assert found["met"]
    assert found["quantile"] < 1e-3


def _known_by_moments(constrained: bool) -> Target:
    """One positive site, log-normal, and three real ones, with exact moments and quantiles."""
    loc, scale = torch.arange(3.0).double(), torch.tensor([1.0, 2.0, 3.0]).double()

    def model() -> None:
        pyro.sample("x", dist.LogNormal(loc[1], 0.5))
        pyro.sample("y", dist.Normal(loc, scale).to_event(1))

    normal = stats.norm.ppf(QUANTILES)
    quantiles = {"x": np.exp(1 + 0.5 * normal), "y": loc.numpy() + np.outer(normal, scale)}
    mean, sd = {"x": np.array(1.0), "y": loc.numpy()}, {"x": np.array(0.5), "y": scale.numpy()}
    if constrained:
        mean["x"], sd["x"] = (np.array(f(s=0.5, scale=np.e)) for f in _LOG_NORMAL)
    known = Moments(mean, sd, constrained=constrained, quantiles=quantiles)
    return Target("known", model, moments=lambda: known)


_LOG_NORMAL = (stats.lognorm.mean, stats.lognorm.std)


@pytest.mark.parametrize("constrained", [False, True])
def test_moments_are_of_the_scale_they_say(constrained):
    """Several sites of different shapes, one of them with another unconstrained scale."""
    target = _known_by_moments(constrained)
    z = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(3.0) + z[:, 1:] * torch.tensor([1.0, 2.0, 3.0])
    right = {"x": (1 + 0.5 * z[:, 0]).exp(), "y": y}
    found = errors(target, right)
    assert found["met"]
    assert max(found["mean"], found["log_sd"]) < 0.02
    assert found["quantile"] < 0.01
    # A tenth of an sd on the log scale.
    found = errors(target, right | {"x": right["x"] * np.exp(0.05)})
    assert not found["met"]
    assert found["worst"] == 0
    assert found["quantile"] == pytest.approx(0.04, abs=0.01)
    if not constrained:
        assert found["mean"] == pytest.approx(0.1, abs=0.01)
    wide = y.mean(0) + 1.2 * (y - y.mean(0))
    assert errors(target, right | {"y": wide})["log_sd"] == pytest.approx(np.log(1.2), abs=0.01)


def test_pyros_guides_are_trained_on_the_target(monkeypatch):
    from pyro.infer.autoguide import AutoMultivariateNormal

    from . import fits

    monkeypatch.setattr(fits, "STEPS", 400)
    target = synthetic.targets()["banana_opaque"]
    fit = pyro_guide(AutoMultivariateNormal, target, 0)
    z, log_p, log_q = fit.sample(50, 1)
    assert z.shape == (50, 2)
    torch.testing.assert_close(torch.as_tensor(log_p), target.log_joint(torch.as_tensor(z)))
    assert (log_p - log_q).mean() > -10
    assert set(fit.draws(7)) == {"z"}


def test_pyros_guides_see_the_target_within_the_plate_of_their_particles():
    from . import fits

    for name in ("label_switching", "funnel_10"):
        target = traps.targets().get(name) or synthetic.targets()[name]
        model = fits._flat(target)
        with pyro.plate("particles", 5, dim=-1):
            trace = pyro.poutine.trace(model).get_trace()
        z = trace.nodes["z"]["value"]
        trace.compute_log_prob()
        found = trace.nodes["log_joint"]["log_prob"]
        torch.testing.assert_close(found, target.log_joint(z).to(found.dtype))


def test_rows_are_read_once_and_shown(tmp_path: Path):
    row = {
        "guide": "flow",
        "target": "t",
        "seed": 0,
        "group": "g",
        "d": 2,
        "gap": 0.5,
        "gap_se": 0.1,
        "judged": "gap_known",
        "share": 0.9,
        "khat": 0.3,
        "khat_applicable": True,
        "evidence_error": 0.01,
        "seconds": 1.0,
        "gradients": 10,
        "status": "reliable",
        "truth": "right",
        "delivered_errors": {"mean": 0.1, "quantile": 0.01, "modes": None, "met": True},
    }
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row | {"gap": gap}) for gap in (9.0, 0.5)))
    rows = read([file, tmp_path / "none.jsonl"])
    assert [r["gap"] for r in rows] == [0.5]
    shown = table([*rows, {"guide": "flow", "target": "broken", "seed": 0, "error": "x"}])
    assert "| t | 2 | 1 | 0.7000 | gap_known | 0.900 | 0.30 |" in shown
    assert "1 error" in shown


class TestBars:
    def row(self, target="nes1972", seed=0, **figures):
        row = {"guide": "flow", "target": target, "seed": seed, "group": "posteriordb"}
        row |= {"gap": 0.0, "gap_se": 0.0, "share": 1.0, "khat": 0.3, "khat_applicable": True}
        row |= {"log_z": -1.0, "log_z_se": 0.0, "ln_z_is": -1.0, "ln_z_is_se": 1e-3}
        row |= {"gradients": 10, "seconds": 1.0, "evidence_error": 0.0, "n_nan": 0, "n": 10}
        errors = {"met": True, "quantile": 0.01, "modes": None, "missing": None}
        return row | {"delivered_errors": errors} | figures

    def broken(self, target="nes1972", seed=9):
        row = {"guide": "flow", "target": target, "seed": seed, "group": "posteriordb"}
        return row | {"log_z": -1.0, "error": "ValueError: x"}

    def line(self, rows, name):
        (line,) = (line for line in bars.table(rows).splitlines() if name in line)
        return line

    def test_medians_over_seeds_and_the_worst_fit(self):
        rows = [self.row(seed=seed, gap=gap) for seed, gap in enumerate((0.0005, 0.0007, 0.03))]
        line = self.line(rows, "posteriordb, gap")
        assert "0.0007, 0.0007, 0.0300 | 3 | 3 | **no**" in line
        assert "yes" in self.line(rows[:2], "posteriordb, gap")

    def test_two_standard_errors_are_added(self):
        rows = [self.row("sonar", gap=0.09, gap_se=0.006)]
        assert "0.1020 | 1 | 1 | **no**" in self.line(rows, "sonar")

    def test_low_shares_are_the_bad_ones(self):
        rows = [self.row(seed=seed, share=share) for seed, share in enumerate((0.999, 0.8))]
        assert "**no**" in self.line(rows, "effective share")
        assert "yes" in self.line(rows[:1], "effective share")

    @pytest.mark.parametrize(
        "figures",
        [{"gap": None}, {"gap": math.nan}, {"khat": None}, {"khat": math.nan}, {"share": None}],
    )
    def test_a_figure_that_is_missing_or_no_number_is_the_worst(self, figures):
        name = {"gap": "gap", "khat": "k-hat, worst", "share": "effective share"}[[*figures][0]]
        for rows in ([self.row(), self.row(seed=1, **figures)], [self.row(**figures), self.row()]):
            assert "**no**" in self.line(rows, f"posteriordb, {name}")

    def test_a_gap_is_not_asked_where_the_evidence_is_unknown(self):
        rows = [self.row(), self.row("accel_gp", gap=None, log_z=None)]
        assert "| 1 | 1 | yes" in self.line(rows, "posteriordb, gap")

    def test_a_share_of_the_wrong_evidence_is_none(self):
        rows = [self.row(ln_z_is=-1.69)]
        assert "0.000, 0.000, 0.000" in self.line(rows, "effective share")

    def test_constant_weights_pass(self):
        rows = [self.row(khat=None, khat_applicable=False)]
        assert "yes" in self.line(rows, "k-hat, worst")
        rows.append(self.row(seed=1, khat=0.9))
        assert "0.90" in self.line(rows, "k-hat, mean")
        assert "**no**" in self.line(rows, "k-hat, mean")

    def test_a_crash_is_the_worst_of_everything(self):
        rows = [self.row(), self.broken()]
        for name in ("posteriordb, gap", "effective share", "k-hat, worst", "beyond its bound"):
            assert "**no**" in self.line(rows, name)
        assert "**no**" in self.line([self.broken("sonar")], "sonar")

    def test_quantiles_have_a_bound_too(self):
        errors = {"met": True, "quantile": 0.03, "modes": None}
        assert "1.000" in self.line([self.row(delivered_errors=errors)], "beyond its bound")

    @pytest.mark.parametrize(
        ("off", "reasons", "answer"),
        [(0.04, [], "yes"), (0.3, [], "**no**"), (0.3, ["8: modes may be missing."], "yes")],
    )
    def test_shares_of_modes_are_right_or_the_verdict_says_so(self, off, reasons, answer):
        errors = {"met": True, "quantile": 0.01, "modes": off}
        row = self.row("many_well_32_opaque", delivered_errors=errors, reasons=reasons)
        assert answer in self.line([row], "the verdict doesn't tell")

    def test_a_budget_is_one(self):
        name, row = "eight_schools_centered, gap within 70", self.row("eight_schools_centered")
        row["guide"] = "flow_70k"
        assert "yes" in self.line([row | {"gradients": 70_000}], name)
        assert "**no**" in self.line([row | {"gradients": 70_001}], name)

    def test_errors_and_nan_are_failures(self):
        good = [self.row()]
        assert "0; 0 | 1 | 1 | yes" in self.line(good, "without a result")
        rows = [*good, self.row(seed=1, n_nan=5), self.broken()]
        assert "1; 1 | 3 | 3 | **no**" in self.line(rows, "without a result")


def test_draws_that_are_no_numbers_are_wrong():
    target = synthetic.targets()["gmm_40"]
    draws = target.reference()
    one = {name: value.copy() for name, value in draws.items()}
    next(iter(one.values()))[0] = math.nan
    found = errors(target, one)
    assert found["met"] is False
    assert found["mean"] == found["modes"] == math.inf


def test_a_mode_that_is_missing_is_counted():
    target = synthetic.targets()["gmm_40"]
    draws = target.reference()
    assert errors(target, draws)["missing"] == 0
    index = target.modes.assign(target.unconstrain(draws))
    some = {name: value[index != 7] for name, value in draws.items()}
    found = errors(target, some)
    assert found["missing"] == 1
    assert found["modes"] < 0.05
