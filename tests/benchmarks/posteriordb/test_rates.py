# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Rates of a verdict's mistakes, and the guides made wrong to find them."""

from __future__ import annotations

import math

import pytest
import torch

from posteriordb import defects, targets
from posteriordb.rates import halves, interval, rates, table


def row(target: str, truth: str, status: str, defect: str = "none") -> dict:
    errors = {"mean": 0.3, "log_sd": None}
    return {
        "target": target,
        "seed": 0,
        "defect": defect,
        "truth": truth,
        "status": status,
        "errors": errors,
    }


ROWS = [
    row("a", "wrong", "corrected"),
    row("a", "wrong", "not reliable"),
    row("b", "right", "not reliable", "shrunk"),
    row("b", "right", "reliable"),
    row("b", "right", "corrected"),
    row("c", "grey", "reliable"),
    row("c", "unknown", "reliable"),
    {"target": "d", "seed": 0, "error": "ValueError: x"},
]


def test_rates_count_the_wrong_and_the_right_alone() -> None:
    assert rates(ROWS) == {"false assurance": (1, 2), "false alarm": (2, 4), "joint": (1, 6)}
    assert rates([])["joint"] == (0, 0)


def test_intervals_are_those_of_the_binomial() -> None:
    low, high = interval(3, 40)

    def at_most(count: int, share: float) -> float:
        return sum(math.comb(40, k) * share**k * (1 - share) ** (40 - k) for k in range(count + 1))

    assert at_most(3, high) == pytest.approx(0.025)
    assert 1 - at_most(2, low) == pytest.approx(0.025)
    assert interval(0, 59)[1] == pytest.approx(1 - 0.025 ** (1 / 59))
    assert interval(5, 5)[1] == 1.0


def test_a_targets_half_hangs_on_its_name_alone() -> None:
    first, second = halves(ROWS)
    assert not {r["target"] for r in first} & {r["target"] for r in second}
    assert len(first) + len(second) == len(ROWS)
    for part in (first, second):
        assert halves([part[0]]) == (([part[0]], []) if part is first else ([], [part[0]]))


def test_the_table_prints_every_mistake() -> None:
    text = table(ROWS)
    assert "| all targets | 1 of 2: 50.0%" in text
    assert "- a, none, seed 0: corrected; mean 0.30" in text
    assert "- b, shrunk, seed 0: not reliable" in text
    assert "8 guides of 4 targets: 3 right, 2 wrong, 1 grey, 1 unknown, 1 error" in text


def test_guides_have_the_defect_they_are_named_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "STEPS", 20)
    target = targets()["student_t5_opaque"]
    made = dict(defects.guides(target, seed=1))
    expected = {"none", "shrunk", "shifted", "clipped", "full Gaussian", "mean field"}
    assert set(made) == expected | {"stopped early", "too fast"}
    torch.manual_seed(0)
    noise = torch.randn(4000, target.dim, dtype=torch.float64)
    draws = {name: guide.get_transform()(noise).detach() for name, guide in made.items()}
    good = draws["none"]
    sds = good.std(0)
    torch.testing.assert_close(draws["shrunk"].std(0), 0.8 * sds)
    shift = draws["shifted"] - good
    assert bool(((shift - shift[0]).abs() < 1e-9).all())
    scale = made["none"].affine.scale_tril.detach()
    white = torch.linalg.solve_triangular(scale, shift[:1].T, upper=False)
    assert float(white.norm().detach()) == pytest.approx(0.3)
    correlation = torch.corrcoef(draws["mean field"].T) - torch.eye(target.dim)
    assert float(correlation.abs().max()) < 0.1
    # A clipped guide has no density beyond its clip, and the right one inside.
    clipped = made["clipped"].get_posterior()
    far = made["clipped"].affine.loc.detach() + 4.5 * scale.sum(-1)
    assert not math.isfinite(float(clipped.log_prob(far).detach()))
    x, ladj = made["clipped"].get_transform().forward_and_ladj(noise[:5])
    base = -0.5 * noise[:5].square().sum(-1) - 0.5 * target.dim * math.log(2 * math.pi)
    torch.testing.assert_close(clipped.log_prob(x).detach(), (base - ladj).detach())


def test_only_targets_with_modes_get_a_guide_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "STEPS", 20)
    monkeypatch.setattr(defects, "_train", lambda objective, steps, rate: None)
    target = targets()["mixture_90_10_opaque"]
    made = dict(defects.guides(target, seed=0))
    assert made["none"].modes == 2
    assert made["one mode"].modes == 1
    assert "shrunk" not in made
