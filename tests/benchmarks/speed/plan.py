# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What is measured: groups, the cases of each, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from targets import PARTICLES

JAX = ("numpyro", "flowjax")
LIBRARIES = ("zuko", "nflows", "normflows", "pyro", *JAX)


@dataclass(frozen=True)
class Entry:
    """One who takes part.

    Attributes:
        name: As it is called in the rows, and in ``CONTENDERS`` of its module.
        library: Whose it is: "ours", or one of ``LIBRARIES``.
    """

    name: str
    library: str = "ours"

    @property
    def module(self) -> str:
        """Where it is built."""
        if self.library == "ours":
            return "ours"
        return "jax_peers" if self.library in JAX else "torch_peers"


@dataclass(frozen=True)
class Group:
    """Cases of one kind.

    Attributes:
        title: What a figure of it is.
        cases: The sizes of each, by name.
        entries: Who takes part in every case.
        note: What to know of the figures.
        whole: Whether whole runs are timed, each pair of them in a fresh process, not steps.
    """

    title: str
    cases: dict[str, dict[str, Any]]
    entries: tuple[Entry, ...] = (Entry("ours"),)
    note: str = ""
    whole: bool = False


_COMPILED = Entry("ours compiled")

# One size at a time, the others as here.
_USUAL = {"particles": PARTICLES, "layers": 8}
_GROWTH: dict[str, dict[str, Any]] = {
    **{
        f"dim {dim}": {"model": "gaussian", "dim": dim}
        for dim in (2, 5, 10, 20, 50, 100, 200, 400, 500, 1000)
    },
    **{
        f"particles {count}": {"model": "gaussian", "dim": 20, "particles": count}
        for count in (16, 32, 64, 128, 256, 512, 1024)
    },
    **{
        f"rows {rows}": {"model": "logistic", "dim": 10, "rows": rows}
        for rows in (100, 1_000, 10_000, 100_000)
    },
    **{
        f"layers {layers}": {"model": "gaussian", "dim": 20, "layers": layers}
        for layers in (2, 4, 8, 16)
    },
}

GROUPS = {
    "density": Group(
        "a maximum-likelihood step of 5 spline couplings, 256 rows",
        {f"D = {dim}": {"dim": dim} for dim in (10, 64)},
        (
            *(Entry("ours"), _COMPILED, Entry("ours, whole step compiled")),
            Entry("matrix products"),
            *(Entry(name, name) for name in ("zuko", "nflows", "normflows", "flowjax")),
            Entry("Pyro", "pyro"),
        ),
        "All have as many layers, bins and hidden units; flowjax's splines have a slope more at "
        "each end, our networks a linear shortcut. Matrix products: our networks alone.",
    ),
    "vi_step": Group(
        f"an ELBO step, {PARTICLES} particles",
        {
            "eight schools, D = 10": {"model": "eight schools", "dim": 10, "width": 64},
            "hierarchy, D = 90": {"model": "hierarchy", "dim": 90, "width": 180},
        },
        (
            *(Entry("ours"), _COMPILED),
            *(Entry("ours, IAF's size"), Entry("ours, IAF's size, compiled")),
            Entry("Pyro", "pyro"),
            *(
                Entry(f"NumPyro {guide}", "numpyro")
                for guide in ("AutoMultivariateNormal", "AutoIAFNormal", "AutoBNAFNormal")
            ),
        ),
        "Ours and Pyro's: 6 affine couplings, one hidden layer, and an affine; of IAF's size: 3 "
        "and an affine. The build of ours has the search for the best Gaussian in it. NumPyro's "
        "guides are as they come; of AutoIAFNormal's parameters about half are masked.",
    ),
    "vi_total": Group(
        "a whole fit of centred eight schools",
        {
            "eight schools": {
                "model": "eight schools",
                "dim": 10,
                "warmup": 1000,
                "draws": 1000,
            }
        },
        (
            *(Entry("ours"), _COMPILED),
            *(Entry("Pyro NUTS", "pyro"), Entry("NumPyro NUTS", "numpyro")),
        ),
        "Cold: the first fit of a process; warm: one more, by another seed. Errors are the "
        "largest over (mu, log tau, theta) against quadrature: ours of 10,000 draws, those of "
        "NUTS of its 1,000. The gap is the raw guide's, by 100,000 draws. Median / largest.",
        whole=True,
    ),
    "growth": Group(
        "a training step of the default flow",
        {name: _USUAL | sizes for name, sizes in _GROWTH.items()},
        note=f"Elsewhere 8 couplings, {PARTICLES} particles, and a correlated Gaussian of D = 20; "
        "rows are those of a logistic regression of 10 columns. Beyond D = 400 the default flow "
        "has no rotation.",
    ),
    "sampling": Group(
        "draws of 5 autoregressive layers, D = 64",
        {
            f"{kind}, {draws} draws": {"kind": kind, "dim": 64, "draws": draws, "training": 500}
            for kind in ("maf", "nsf")
            for draws in (1, 100, 1000)
        },
        (Entry("ours"), Entry("zuko", "zuko"), Entry("flowjax", "flowjax")),
        "Ours and zuko's are trained first, for 500 steps on the same data (in the build); "
        "flowjax's cost doesn't depend on parameters. maf: affine, nsf: splines.",
    ),
}
