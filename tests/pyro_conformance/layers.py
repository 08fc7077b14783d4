# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro's own tests of transforms, on every layer of our catalogue that they can apply to.

``run.py`` runs this file in a folder where ``tests`` is Pyro's. What is called is Pyro's
``TransformTests._test`` and ``_test_conditional``, unchanged: finite-difference Jacobians, round
trips, shapes and three steps of maximum likelihood, in two and five dimensions. Pyro runs them at
the start of a layer; here they run at perturbed parameters as well.
"""

from __future__ import annotations

import pytest
import torch
from catalogue import CATALOGUE
from tests.distributions.test_transforms import TransformTests

from pyro_flows.testing import Case

DIMS = (2, 5)  # those that Pyro's tests use
PERTURBATIONS = {"start": 0.0, "perturbed": 1.0}


def not_applicable(entry):
    """Why Pyro's tests don't apply to a layer; None where they do."""
    if not set(DIMS) <= set(entry.dims):
        return "an image's layer has no two or five coordinates"
    if not Case(entry.make, 2).is_real():
        return "the tests draw base and data from the real line"
    return None


APPLICABLE = [id for id, entry in CATALOGUE.items() if not_applicable(entry) is None]
CONDITIONAL = [id for id in APPLICABLE if CATALOGUE[id].conditional]


def layer_of(id, dim, context_dim, times):
    """The catalogue's layer, moved from its start by ``times`` the catalogue's perturbation."""
    entry = CATALOGUE[id]
    case = Case(entry.make, dim, context_dim, perturb=times * entry.perturbation(dim))
    return case.layer()


def run(method, factory, id):
    """Call one of Pyro's methods; a layer without parameters has nothing to optimise."""
    tests = TransformTests("test_affine_coupling")
    tests.setUp()
    trained = any(p.numel() for p in CATALOGUE[id].make(2, 0).parameters())
    getattr(tests, method)(factory, autodiff=trained)


@pytest.mark.parametrize("times", PERTURBATIONS.values(), ids=PERTURBATIONS)
@pytest.mark.parametrize("id", APPLICABLE)
def test_plain(id, times):
    run("_test", lambda dim: layer_of(id, dim, 0, times), id)


class OneContext(torch.nn.Module):
    """Hands on Pyro's batch of one context as one context.

    Pyro's test conditions on a context of shape (1, 3) and expects ``forward_shape`` to ignore
    that axis. Our layers count it as a batch shape.
    """

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def condition(self, context):
        return self.layer.condition(context.squeeze(0))


@pytest.mark.parametrize("times", PERTURBATIONS.values(), ids=PERTURBATIONS)
@pytest.mark.parametrize("id", CONDITIONAL)
def test_conditional(id, times):
    run("_test_conditional", lambda dim, c: OneContext(layer_of(id, dim, c, times)), id)
