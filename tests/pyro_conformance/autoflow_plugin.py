# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A pytest plugin that runs Pyro's own guide tests with AutoFlow in the place of Pyro's guides.

Pyro's tests are parametrised over guide classes. At collection, each list of classes is replaced:

* Pyro's guide classes give way to ``AutoFlow``, once;
* ``functools.partial(PyroClass, init_loc_fn=...)`` becomes ``functools.partial(AutoFlow, ...)``;
* functions that build a guide out of several stay, and the Gaussian or flow inside them becomes
  an ``AutoFlow``, since the names they look up in their module are replaced while a test runs;
* all else (guides with other constructors, messengers) is dropped.

``NOT_APPLICABLE`` names the tests that are left out, each with the reason.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger

from pyro_flows.guides import AutoFlow

# The parameters of Pyro's tests that hold a guide class.
GUIDE_PARAMETERS = ("auto_class", "continuous_class", "Guide")

# Names that Pyro's test modules look up themselves, replaced while a test runs. (test_inference
# gives the class it finds under AutoLowRankMultivariateNormal a rank.)
REPLACED_NAMES = {
    "test_autoguide": ("AutoDiagonalNormal", "AutoIAFNormal", "AutoLowRankMultivariateNormal"),
    "test_neutra": ("AutoIAFNormal",),
    "test_inference": ("AutoIAFNormal",),
}

# Functions of Pyro's test modules that build a guide out of several.
GUIDE_BUILDERS = (
    "auto_guide_list_x",
    "auto_guide_callable",
    "auto_guide_module_callable",
    "nested_auto_guide_callable",
    "AutoGuideList_x",
)

# Pyro's test modules in which AutoFlow takes part, and what of them does not apply to it.
NOT_APPLICABLE = {
    "test_autoguide": {
        "test_subsample_model": "a latent local to a subsampled plate: refused by design, since a "
        "flat vector would tie it to slots of the minibatch (Pyro leaves AutoContinuous out too)",
        "test_subsample_model_amortized": "the amortized_plates of guides that are messengers",
        "test_subsample_guide": "a latent local to a subsampled plate, with create_plates: "
        "refused by design, as above",
        "test_subsample_guide_2": "a model without latents: refused with an error by design, as "
        "test_empty_model_error asks of a flat guide",
        "test_sphere_raw_ok": "AutoDelta only: a sphere has no unconstrained coordinates; that "
        "AutoFlow says what to do there is test_sphere_helpful_error",
        "test_autonormal_dynamic_model": "AutoNormal only: sets its locs by hand",
    },
    "test_neutra": {},
    "test_inference": {
        "test_auto_diagonal_gaussians": "Gaussian guides only (Pyro leaves its flow guides out): "
        "one particle a step and a location within 0.05 bound the noise of a single parameter; a "
        "flow has many that move it. test_exact and its kin ask for moments from 100 particles",
        "test_multivariatate_normal_auto": "a method that builds an AutoMultivariateNormal and "
        "reads its loc and scale_tril; test_exact_tree asks the same of AutoFlow",
    },
}


class AutoFlowWithTransform(AutoFlow):
    """AutoFlow with the attribute by which test_auto_dirichlet reads Pyro's own flow guides."""

    @property
    def transform(self) -> Any:
        """The transform as an attribute; AutoFlow has the method alone."""
        return self.get_transform()


def replacement(function: str) -> Any:
    """What stands for a guide class in a test."""
    if function == "test_quantiles":
        # Under `hasattr(auto_class, "get_posterior")` the test asks for posterior.variance and
        # compares quantiles with a Gaussian's; a partial has no such attribute.
        return functools.partial(AutoFlow)
    if function == "test_auto_dirichlet":
        return AutoFlowWithTransform
    return AutoFlow


def replace(function: str, values: list[Any]) -> list[Any]:
    """A test's list of guide classes, with AutoFlow in their place."""
    cls, found = replacement(function), {}
    for value in values:
        guide = value.values[0] if hasattr(value, "values") else value  # out of pytest.param
        if isinstance(guide, functools.partial):
            inits = {
                key: getattr(arg, "__name__", str(arg)) for key, arg in guide.keywords.items()
            }
            name = "-".join(["AutoFlow", *inits.values()])
            found[name] = functools.partial(AutoFlow, **guide.keywords)
        elif inspect.isclass(guide):
            if issubclass(guide, AutoGuide) and not issubclass(guide, Messenger):
                found["AutoFlow"] = cls
        elif getattr(guide, "__name__", "") in GUIDE_BUILDERS:
            found[guide.__name__] = guide
    return [pytest.param(guide, id=name) for name, guide in found.items()]


def module_name(item: Any) -> str:
    """The last part of the name of a test's module."""
    return item.module.__name__.rsplit(".", 1)[-1]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """Replace the guide classes before pytest reads them."""
    markers = metafunc.definition.own_markers
    for i, mark in enumerate(markers):
        if mark.name == "parametrize" and mark.args[0] in GUIDE_PARAMETERS:
            values = replace(metafunc.function.__name__, list(mark.args[1]))
            markers[i] = pytest.mark.parametrize(mark.args[0], values).mark


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what does not apply."""
    keep, drop = [], []
    for item in items:
        left_out = item.function.__name__ in NOT_APPLICABLE.get(module_name(item), {})
        inherited = item.cls is not None  # unittest classes that a module imports
        (drop if left_out or inherited else keep).append(item)
    config.hook.pytest_deselected(items=drop)
    items[:] = keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Iterator[None]:
    """Replace the names of guides in the test's module while the test runs."""
    cls = replacement(item.function.__name__)
    with pytest.MonkeyPatch.context() as patch:
        for name in REPLACED_NAMES.get(module_name(item), ()):
            patch.setattr(item.module, name, cls)
        return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print run and passed per test function, and what was left out and why."""
    run: Counter[tuple[str, str]] = Counter()
    passed: Counter[tuple[str, str]] = Counter()
    expected: Counter[tuple[str, str]] = Counter()
    for outcome, counter in (("passed", passed), ("xfailed", expected), ("failed", Counter())):
        for report in terminalreporter.stats.get(outcome, []):
            path, _, test = report.nodeid.partition("::")
            key = (path, test.split("[")[0])
            counter[key] += 1
            run[key] += 1
    write = terminalreporter.write_line
    terminalreporter.section(f"AutoFlow in Pyro's own tests (Pyro {pyro.__version__})")
    for key, count in sorted(run.items()):
        note = f", {expected[key]} fail as Pyro's own guides do" if expected[key] else ""
        write(f"{key[0]}::{key[1]}: {passed[key]} of {count} passed{note}")
    write(
        f"total: {sum(run.values())} run, {sum(passed.values())} passed, "
        f"{sum(expected.values())} expected failures"
    )
    for module, tests in NOT_APPLICABLE.items():
        for test, reason in tests.items():
            write(f"not applicable: {module}::{test}: {reason}")
