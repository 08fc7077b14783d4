# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The compiled step of maximum likelihood: the same fit as without it, or a reason against it."""

import numpy as np
import pytest
import torch

from pyro_flows import transforms
from pyro_flows.density import FlowDensity
from pyro_flows.ops.batch_last import batch_last
from pyro_flows.training import whole_step

QUICK = {"num_steps": 30, "batch_size": 64, "components": None, "progress": False}
COMPILED = "compiled: each step is one function"


def rows(n=300, seed=0):
    return np.random.default_rng(seed).gamma(2.0, size=(n, 3))


@pytest.fixture
def recorded_only(monkeypatch):
    """The recorded graphs as they are: what a compiler makes of them is its own affair.

    Of each one that was to be compiled, the shapes of its inputs. It is always the one with the
    batch innermost.
    """
    seen, graphs = [], []

    def laid_out(*args):
        graphs.append(batch_last(*args))
        return graphs[-1]

    def kept(graph, inputs):
        assert graphs[-1] is not None
        assert len(graphs) == len(seen) + 1, "the first attempt was given up"
        seen.append([tuple(tensor.shape) for tensor in inputs])
        return graph

    monkeypatch.setattr(whole_step, "batch_last", laid_out)
    monkeypatch.setattr(whole_step, "_compile", kept)
    return seen


def fits(context=None, x=None, **options):
    x = rows() if x is None else x
    for compile in (False, True):
        yield FlowDensity(**{**QUICK, "compile": compile, **options}).fit(x, context)


@pytest.mark.parametrize("flow", ["realnvp", "nsf", "maf", "glow"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_recorded_step_gives_the_same_fit(recorded_only, flow, dtype):
    plain, whole = fits(flow=flow, dtype=dtype)
    assert plain.compiled_ == "not compiled: it was not asked for"
    assert whole.compiled_ == COMPILED
    assert recorded_only[0][-1] == (64, 3)
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    for name in ("log_density", "heldout_log_density"):
        np.testing.assert_allclose(whole.history_[name], plain.history_[name], atol=tolerance)
    moved = whole.flow_.state_dict()
    for key, value in plain.flow_.state_dict().items():
        torch.testing.assert_close(moved[key], value, rtol=0, atol=1e-3)


def test_with_a_context(recorded_only):
    context = rows(seed=1)[:, :2]
    plain, whole = fits(context, x=0.1 * rows() + context[:, :1])
    assert whole.compiled_ == COMPILED
    assert recorded_only[0][-2:] == [(64, 3), (64, 2)]
    seen = whole.history_["log_density"]
    np.testing.assert_allclose(seen, plain.history_["log_density"], atol=1e-3)
    assert seen[-5:].mean() > seen[:5].mean() + 0.3, "it learns from the context"


def test_fewer_rows_than_a_batch(recorded_only):
    plain, whole = fits(x=rows(40))
    assert recorded_only[0][-1] == (36, 3)
    assert whole.best_score_ == pytest.approx(plain.best_score_, abs=1e-3)


def test_on_a_mixture_of_gaussians(recorded_only):
    plain, whole = fits(components=2)
    assert whole.compiled_ == COMPILED
    assert whole.best_score_ == pytest.approx(plain.best_score_, abs=1e-3)


class Gap(torch.nn.Module):
    """A normal density, but for rows that have none."""

    def __init__(self, dim):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.ones(dim))

    def log_prob(self, x, context=None):
        log_prob = -0.5 * (x - self.loc).square().sum(-1)
        return torch.where(x[:, 0] > 1.5, -torch.inf, log_prob)


def test_rows_without_a_density_are_masked(recorded_only):
    plain, whole = fits(flow=Gap)
    assert whole.compiled_ == COMPILED
    assert (np.diff(whole.history_["log_density"]) != 0).all()
    np.testing.assert_allclose(
        whole.history_["log_density"], plain.history_["log_density"], atol=1e-3
    )


class Counting(transforms.DiagonalAffine):
    """Counts its steps, and goes by the count."""

    def __init__(self, dim):
        super().__init__(dim)
        self.register_buffer("count", torch.zeros(()))

    def inverse_and_ladj(self, y, context=None):
        if self.training:
            self.count.add_(1)
        x, ladj = super().inverse_and_ladj(y, context)
        return x * (1 + self.count / 1e4), ladj + y.shape[-1] * torch.log1p(self.count / 1e4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout": 0.1}, "dropout draws random numbers"),
        ({"weight_decay": 0.01}, "the parameters are of several dtypes or devices, or decay"),
        ({"flow": lambda dim: transforms.BatchNorm(dim)}, "FilledError: aten."),
        ({"flow": Counting}, "RecordingError: buffers of the flow change in training"),
        ({"flow": "residual", "num_steps": 2}, "RecordingError: aten."),
        ({"compile": "auto"}, "cycles of fewer than 5,000 steps are over before compiling is"),
        ({"compile": np.False_}, "it was not asked for"),
    ],
)
def test_what_cant_be_compiled_is_trained_by_calls(recorded_only, options, reason):
    plain, whole = fits(**options)
    assert whole.compiled_.startswith(f"not compiled: {reason}")
    assert recorded_only == []
    for name, values in whole.history_.items():
        assert values.tolist() == plain.history_[name].tolist()
    state = plain.flow_.state_dict()
    for key, value in whole.flow_.state_dict().items():
        assert torch.equal(value, state[key])


def test_auto_leaves_the_time_there_is():
    fit = FlowDensity(**QUICK, compile="auto", max_seconds=1000).fit(rows())
    assert fit.compiled_ == "not compiled: compiling would use up the time there is"


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_buffers_are_compared_by_value(dtype):
    one = torch.tensor([0, 1], dtype=dtype)
    assert whole_step._same(one, one.clone())
    assert not whole_step._same(one, one.flip(0))
    gap = torch.tensor([torch.nan, 1.0])
    assert whole_step._same(gap, gap.clone())
    assert not whole_step._same(gap, one)
    assert not whole_step._same(one, gap), "NaN that was there before and isn't now"


def test_interrupted_while_compiling(monkeypatch):
    def interrupted(graph, inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_step, "_compile", interrupted)
    *_, whole = fits()
    assert whole.compiled_ == "not compiled: training ended before it could be"
    assert "interrupted" in whole.stop_reason_
    assert not whole.flow_.training


def test_too_many_operations(recorded_only, monkeypatch):
    monkeypatch.setattr(whole_step, "MOST", 100)
    *_, whole = fits()
    assert whole.compiled_ == (
        "not compiled: RecordingError: it would be a function of more than 100 operations"
    )


def test_without_a_compiler_steps_are_taken_by_calls(monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("No working C++ compiler found.\nSome more.")

    monkeypatch.setattr(whole_step, "_compile", missing)
    plain, whole = fits()
    assert whole.compiled_ == "not compiled: RuntimeError: No working C++ compiler found."
    assert whole.best_score_ == plain.best_score_


def test_it_is_kept_with_the_fit(recorded_only, tmp_path):
    *_, whole = fits(num_steps=3)
    path = whole.save(tmp_path / "fit")
    assert FlowDensity.load(path).compiled_ == COMPILED
    text = (path / "density.json").read_text()
    (path / "density.json").write_text(text.replace('"compiled_"', '"of a later version"'))
    assert FlowDensity.load(path).compiled_ == "not compiled: it was not asked for"


@pytest.mark.slow
def test_a_compiler_gives_the_same_fit():
    plain, whole = fits(flow_options={"layers": 2})
    assert whole.compiled_ == COMPILED
    assert whole.best_score_ == pytest.approx(plain.best_score_, abs=1e-3)
    assert torch.isfinite(torch.as_tensor(whole.score_samples(rows(seed=2)))).all()
