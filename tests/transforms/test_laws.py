# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every layer of the catalogue is held to every law; and the laws catch what they are for."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_flows.testing import LAWS, check_layer
from pyro_flows.testing.gradients import FEW
from pyro_flows.transforms import (
    AffineCoupling,
    CholeskyAffine,
    ContractiveResidual,
    Elementwise,
    Layer,
    Permute,
    Shift,
    Sigmoid,
)

sys.path.insert(0, str(Path(__file__).parents[1]))
from catalogue import CATALOGUE  # noqa: E402

BATCHES = ((), (3,), (3, 4))
DTYPES = (torch.float64, torch.float32)
CONTEXTS = (0, 2)
QUICK = [name for name in LAWS if name != "compiles"]
QUADRATURE = {"integrates_to_one", "samples_follow_density"}
NEED_PARAMETERS = {
    "parameters_get_gradients",
    "weighted_gradients",
    "never_stale",
    "starts_at_identity",
}


def pairwise():
    """Each layer at every other dim: 1 and 5, or 2 and 64; the full grid is for the slow tests.

    Every two of dim, batch shape, dtype and context meet somewhere.
    """
    for k, (id, entry) in enumerate(CATALOGUE.items()):
        for i, dim in enumerate(entry.dims):
            if dim in entry.slow_dims or (len(entry.dims) > 2 and (i + k) % 2):
                continue
            batch = BATCHES[(i + k) % 3]
            dtype = DTYPES[(i + k // 3) % 2]
            context_dim = CONTEXTS[(i // 2 + k // 6 + k) % 2]
            yield id, dim, entry.context_dim(dim, context_dim), batch, dtype


def full_grid():
    for id, entry in CATALOGUE.items():
        for dim, batch, dtype, c in itertools.product(entry.dims, BATCHES, DTYPES, CONTEXTS):
            if c == entry.context_dim(dim, c):
                yield id, dim, c, batch, dtype


def name(setting):
    id, dim, context_dim, batch, dtype = setting
    return f"{id}-D{dim}-c{context_dim}-b{'x'.join(map(str, batch)) or 0}-{str(dtype)[6:]}"


def hold(setting, laws, *, seed=0, times=1.0):
    id, dim, context_dim, batch_shape, dtype = setting
    entry = CATALOGUE[id]
    return check_layer(
        entry.make,
        dim=dim,
        context_dim=context_dim,
        batch_shape=batch_shape,
        dtype=dtype,
        seed=seed,
        perturb=times * entry.perturbation(dim),
        laws=laws,
    )


def small(entry):
    """The smallest dim above 1 that an entry has: large ones are slow."""
    return min((2, 3, 4, 5, *entry.dims), key=lambda dim: (dim not in entry.dims, dim < 2, dim))


@pytest.mark.parametrize("setting", pairwise(), ids=name)
def test_laws_hold(setting):
    left_out, entry = hold(setting, QUICK), CATALOGUE[setting[0]]
    allowed = set(entry.left_out)
    if setting[1] > 2:
        allowed |= QUADRATURE
    if setting[1] > FEW:
        allowed |= {"second_derivatives_are_right"}
    if not any(p.numel() for p in entry.make(setting[1], setting[2]).parameters()):
        allowed |= NEED_PARAMETERS
    assert set(left_out) <= allowed, left_out


def test_the_design_is_pairwise():
    """Over the catalogue every value of one setting meets every value of another."""
    rows = [row[1:] for row in pairwise()]
    values = ((1, 2, 5, 64), CONTEXTS, BATCHES, DTYPES)
    for a, b in itertools.combinations(range(4), 2):
        met = {(row[a], row[b]) for row in rows}
        assert met >= set(itertools.product(values[a], values[b]))


@pytest.mark.parametrize("id", ["spline_coupling", "cholesky", "compose"])
def test_compiles(id):
    hold((id, 5, CATALOGUE[id].context_dim(5, 2), (3,), torch.float64), ["compiles"])


@pytest.mark.slow
@pytest.mark.parametrize("setting", full_grid(), ids=name)
def test_laws_hold_on_the_full_grid(setting):
    hold(setting, QUICK, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("id", CATALOGUE)
def test_laws_hold_far_from_the_start(id):
    """Quadrature and float32 have nothing to say of densities this wild."""
    wild = {"integrates_to_one", "samples_follow_density", "float32"}
    entry = CATALOGUE[id]
    for dim in {small(entry), max(d for d in entry.dims if d < 64 or len(entry.dims) == 1)}:
        setting = (id, dim, entry.context_dim(dim, 2), (3,), torch.float64)
        hold(setting, [law for law in QUICK if law not in wild], seed=2, times=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("id", CATALOGUE)
def test_everything_compiles(id):
    entry = CATALOGUE[id]
    for context_dim, dtype in ((0, torch.float32), (2, torch.float64)):
        c = entry.context_dim(small(entry), context_dim)
        hold((id, small(entry), c, (3,), dtype), ["compiles"])


# The laws themselves: each of these layers breaks one, as layers of other libraries do.


class Scale(Layer):
    """``y = x exp(s)``: sound, and the parent of the broken ones."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.s = nn.Parameter(torch.zeros(dim))

    def forward_and_ladj(self, x, context=None):
        self.check(x, context)
        return x * self.s.exp(), self.s.sum().expand(x.shape[:-1])

    def inverse_and_ladj(self, y, context=None):
        self.check(y, context)
        return y * (-self.s).exp(), (-self.s.sum()).expand(y.shape[:-1])


class WrongInverse(Scale):
    def inverse_and_ladj(self, y, context=None):
        x, ladj = super().inverse_and_ladj(y, context)
        return x + 1e-9, ladj


class WrongLogDet(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y, ladj + 1e-6


class Saturated(Scale):
    def forward_and_ladj(self, x, context=None):
        y = 8 * torch.tanh(x / 8)
        return y, (1 - (y / 8) ** 2).log().sum(-1)

    def inverse_and_ladj(self, y, context=None):
        x = 8 * torch.atanh((y / 8).clamp(-1 + 1e-9, 1 - 1e-9))
        return x, -(1 - (y / 8).clamp(-1 + 1e-9, 1 - 1e-9) ** 2).log().sum(-1)


class Overflows(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y, ladj + 0 * (x**20).sum(-1)


class ForgetsNaN(Scale):
    def forward_and_ladj(self, x, context=None):
        return super().forward_and_ladj(x.nan_to_num(), context)


class Clamps(Elementwise):
    """Moves what lies outside its space into it, and gives it a density."""

    def __init__(self, dim):
        super().__init__(dim, Sigmoid())

    def inverse_and_ladj(self, y, context=None):
        return super().inverse_and_ladj(y.clamp(1e-6, 1 - 1e-6), context)


class AsksForParameters(Scale):
    """Works with what ``torch.nn.Module.get_parameter`` finds only."""

    def forward_and_ladj(self, x, context=None):
        self.get_parameter("s")
        return super().forward_and_ladj(x, context)


class Unused(Scale):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.left_over = nn.Parameter(torch.zeros(2))


class Detached(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y, ladj.detach()


class FirstOrder(Scale):
    """The scale's gradient is right, and that of the gradient is not."""

    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        scale = self.s.detach().exp()
        return x * (scale + scale * (self.s - self.s.detach())), ladj


class WrongScore(Scale):
    def forward_and_score(self, x, score, context=None):
        y, ladj = self.forward_and_ladj(x, context)
        return y, ladj.detach(), score


class UniformWeights(Scale):
    """The log-determinant's gradient assumes that all samples weigh the same."""

    class Same(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, x):
            ctx.count = x.shape[:-1].numel()
            return s.sum().expand(x.shape[:-1]).clone()

        @staticmethod
        def backward(ctx, grad):
            return grad.flatten()[0] * ctx.count * torch.ones(2), None

    def forward_and_ladj(self, x, context=None):
        return x * self.s.exp(), self.Same.apply(self.s, x)


class Whitens(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y + 1e-6 * x.nan_to_num().mean(), ladj


class Caches(Scale):
    """Remembers by object identity, as Pyro's transforms do."""

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.slot = None

    def forward_and_ladj(self, x, context=None):
        if self.slot is None or self.slot[0] is not x:
            self.slot = x, super().forward_and_ladj(x, context)
        return self.slot[1]


class PlainTensor(Scale):
    """Keeps what defines the density outside the state dict."""

    counter = itertools.count()

    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        self.shift = next(PlainTensor.counter)

    def forward_and_ladj(self, x, context=None):
        return super().forward_and_ladj(x + self.shift, context)

    def inverse_and_ladj(self, y, context=None):
        x, ladj = super().inverse_and_ladj(y, context)
        return x - self.shift, ladj


class BooleanIndex(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        y = y.clone()
        y[x > 100] = 100.0
        return y, ladj


class ImplicitDevice(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y + torch.zeros(self.dim), ladj


class FarStart(Scale):
    def __init__(self, dim, context_dim=0):
        super().__init__(dim, context_dim)
        nn.init.ones_(self.s)


class Silent(Scale):
    def check(self, x, context):
        pass


class Asserts(Scale):
    def forward_and_ladj(self, x, context=None):
        if (x > 100).any():
            x = x + 0
        return super().forward_and_ladj(x, context)


BREAKS = {
    WrongInverse: "round_trip",
    WrongLogDet: "log_det",
    Saturated: "reaches_far",
    Overflows: "finite",
    ForgetsNaN: "knows_its_space",
    Clamps: "knows_its_space",
    AsksForParameters: "copies_are_faithful",
    Unused: "parameters_get_gradients",
    Detached: "gradients_are_right",
    FirstOrder: "second_derivatives_are_right",
    UniformWeights: "weighted_gradients",
    WrongScore: "pushes_scores",
    Whitens: "ignores_batch_mates",
    Caches: "never_stale",
    PlainTensor: "copies_are_faithful",
    BooleanIndex: "works_under_vmap",
    Asserts: "compiles",
    ImplicitDevice: "no_implicit_device",
    FarStart: "starts_at_identity",
    Silent: "errors_are_sentences",
}


def test_a_sound_layer_of_another_package_passes():
    assert check_layer(lambda dim, c: Scale(dim), dim=2, laws=QUICK) == {}


@pytest.mark.parametrize("kind", BREAKS)
def test_laws_catch(kind):
    # A compiler's complaint or a shape error is as good as a sentence.
    with pytest.raises(Exception) as caught:  # noqa: PT011
        check_layer(lambda dim, c: kind(dim), dim=2, laws=[BREAKS[kind]])
    if caught.type is AssertionError:
        assert str(caught.value).startswith(f"{BREAKS[kind]}: ")
        assert "Setting: dim=2, context_dim=0, batch_shape=(), float64" in str(caught.value)


def test_wrong_densities_are_caught():
    with pytest.raises(AssertionError, match="should integrate to 1, but does to 2.7"):
        check_layer(lambda d, c: OffByOne(d), dim=1, laws=["integrates_to_one"])
    with pytest.raises(AssertionError, match="Kolmogorov-Smirnov distance is"):
        check_layer(lambda d, c: WrongSampler(d), dim=1, laws=["samples_follow_density"])
    with pytest.raises(AssertionError, match="log_prob by Flow"):
        check_layer(lambda d, c: OffByOne(d), dim=1, laws=["scores_its_samples"])


class OffByOne(Scale):
    def inverse_and_ladj(self, y, context=None):
        x, ladj = super().inverse_and_ladj(y, context)
        return x, ladj + 1


class WrongSampler(Scale):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y + 0.2, ladj


class DropsContext(AffineCoupling):
    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context.reshape(-1, self.context_dim)[0])
        return y, ladj


def test_a_batch_of_contexts_that_is_ignored_is_caught():
    with pytest.raises(AssertionError, match="shapes_broadcast: .*context"):
        check_layer(
            lambda d, c: DropsContext(d, context_dim=c),
            dim=2,
            context_dim=2,
            batch_shape=(3,),
            laws=["shapes_broadcast"],
        )


def test_failures_give_the_figures():
    with pytest.raises(AssertionError) as caught:
        check_layer(lambda dim, c: WrongInverse(dim), dim=2, laws=["round_trip"])
    text = str(caught.value)
    assert text.startswith(
        "round_trip: inverse(forward(x)) should be x to 100 eps times the local"
    )
    assert "is 1.0e-09 away where" in text


def test_left_out_laws_have_reasons():
    left_out = check_layer(lambda dim, c: Permute(dim), dim=5, laws=QUICK)
    assert left_out == {
        "integrates_to_one": "quadrature is for one and two dimensions",
        "samples_follow_density": (
            "quadrature is for one and two dimensions; above, round trip and log-det imply it"
        ),
        "parameters_get_gradients": "the layer has no parameters",
        "weighted_gradients": "the layer has no parameters",
        "never_stale": "the layer has no parameters; changes of the data are tested",
        "starts_at_identity": "a permutation is what it is from the start",
    }


def test_a_layer_without_second_derivatives_has_to_say_so():
    left_out = check_layer(
        lambda dim, c: ContractiveResidual(dim, c, log_det="stochastic"),
        dim=2,
        laws=["second_derivatives_are_right"],
    )
    assert left_out["second_derivatives_are_right"].startswith(
        "An estimated log-determinant expected to be differentiated at most once, but got"
    )


def test_check_layer_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    check_layer(lambda dim, c: CholeskyAffine(dim), dim=2, laws=QUICK)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_check_layer_knows_its_laws():
    with pytest.raises(KeyError, match="no_such_law"):
        check_layer(lambda d, c: Elementwise(d, Shift()), dim=1, laws=["no_such_law"])
