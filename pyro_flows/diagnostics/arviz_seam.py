# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""The one module that knows which ArviZ is installed.

ArviZ 0.20 to 0.23 (Python below 3.12) keeps results in ``InferenceData``, ArviZ 1.x (Python 3.12
and later) in ``xarray.DataTree``. The datasets inside are the same (``datasets.py``); the
container, PSIS and the files differ. The rest of the package never branches on a version.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

# Relative, so that a test without torch can load this room without the package around it.
from .datasets import build_datasets, netcdf_attributes

if TYPE_CHECKING:
    import xarray

__all__ = [
    "arviz_major",
    "compare_elpd",
    "elpd_data",
    "group_dataset",
    "import_arviz",
    "load_netcdf",
    "psislw",
    "rhat_and_ess",
    "save_netcdf",
    "to_container",
]

# Below this ArviZ 1.x raises, and a generalised Pareto fit has nothing to say.
MIN_PSIS_DRAWS = 25
# exp of anything below is zero, which leaves no tail to fit.
LOG_TINY = math.log(np.finfo(np.float64).tiny)


def arviz_major() -> int:
    """The major version of the installed ArviZ: 0 for ``InferenceData``, 1 for ``DataTree``.

    Returns:
        The first number of the version, read without importing ArviZ.

    Raises:
        ImportError: if ArviZ is not installed.

    Example:
        >>> arviz_major() in (0, 1)
        True
    """
    # By version, never by hasattr: 1.x still resolves az.InferenceData, to something else.
    try:
        return int(importlib.metadata.version("arviz").split(".", 1)[0])
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            "This needs ArviZ, which is not installed: pip install 'arviz>=0.20,<2'."
        ) from None


def import_arviz() -> ModuleType:
    """Import ArviZ without the notice that 0.23 shows once a day.

    Returns:
        The module ``arviz``.

    Raises:
        ImportError: if ArviZ is not installed.

    Example:
        >>> import_arviz().__name__
        'arviz'
    """
    arviz_major()
    with warnings.catch_warnings():
        # Once a day, by a stamp file: with warnings as errors the day's first import would fail.
        warnings.filterwarnings("ignore", "\\s*ArviZ is undergoing a major", FutureWarning)
        import arviz
    return arviz


def to_container(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    dims: Mapping[str, Sequence[str | None]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
    group_attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Arrays by group and name become what the installed ArviZ works on.

    Args:
        groups: group name to {variable: array}. Arrays of a group in ``SAMPLE_GROUPS`` are
            ``(chain, draw, *shape)``; all others (``observed_data``, ``constant_data``, or a group
            of your own such as ``training``) are ``(*shape)``. A group without variables is left
            out.
        dims: variable to the names of its dimensions, sample dimensions excluded. A missing
            name or None becomes ArviZ's default, ``x_dim_0``. ``log_likelihood`` and
            ``log_prior`` use the leading names only; ``unconstrained_posterior`` keeps a name
            where its size fits and takes the default elsewhere (a simplex loses an element).
        coords: dimension to its labels; 0, 1, ... where none are given.
        attrs: attributes of the whole. Text, numbers and arrays are kept, None becomes "",
            anything else JSON.
        group_attrs: group to attributes of its own.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x. A "/" in a name becomes
        "."; a dimension that shares a variable's name gets the suffix ``_dim``; a variable named
        ``chain`` or ``draw`` the suffix ``_var``.

    Raises:
        ValueError: if an array's shape contradicts its group, dims or coords.
        ImportError: if ArviZ is not installed.

    Example:
        >>> groups = {"posterior": {"theta": np.zeros((1, 50, 8))}}
        >>> data = to_container(groups, dims={"theta": ["school"]}, coords={}, attrs={})
        >>> dict(group_dataset(data, "posterior").sizes) == {"chain": 1, "draw": 50, "school": 8}
        True
    """
    az = import_arviz()
    import xarray as xr

    datasets = build_datasets(groups, dims, coords, group_attrs or {})
    root = netcdf_attributes(attrs)
    if arviz_major() >= 1:
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=root), **datasets})
    return az.InferenceData(attrs=root, warn_on_custom_groups=False, **datasets)


def group_dataset(data: Any, group: str) -> xarray.Dataset:
    """One group of a container as a plain dataset.

    Args:
        data: what ``to_container`` or ``load_netcdf`` returned.
        group: the group's name.

    Returns:
        The group as an ``xarray.Dataset``.

    Raises:
        ValueError: if there is no such group; the message names those there are.

    Example:
        >>> data = to_container({"training": {"elbo": np.zeros(9)}}, dims={}, coords={}, attrs={})
        >>> group_dataset(data, "training")["elbo"].shape
        (9,)
    """
    modern = arviz_major() >= 1
    present = list(data.children) if modern else list(data.groups())
    if group not in present:
        raise ValueError(
            f"Expected one of the groups {sorted(present)}, got {group!r}: "
            "choose one of these, or compute that group when converting."
        )
    dataset: xarray.Dataset = data[group].to_dataset() if modern else data[group]
    return dataset


def psislw(log_ratio: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Pareto smoothed importance sampling, equal on either line of ArviZ.

    Args:
        log_ratio: log p - log q of each draw, shape (S,). Draws at -inf have weight zero and are
            left out of the fit.

    Returns:
        The smoothed log weights (S,), normalised so that their logsumexp is 0, and k-hat.
        k-hat is never NaN: it is inf where no tail can be fitted (fewer than 25 finite draws,
        a spread so wide that all but a few weights are zero, tied tails), and 0 where all
        weights are equal. Weights without a fit are normalised but not smoothed.

    Raises:
        ValueError: if log_ratio is not a vector, or holds a NaN or +inf.

    Example:
        >>> log_weights, khat = psislw(np.random.default_rng(0).normal(size=1000))
        >>> log_weights.shape, khat < 0.7
        ((1000,), True)
    """
    ratio = np.array(log_ratio, dtype=np.float64)  # a copy: ArviZ 0.x works in place
    if ratio.ndim != 1 or np.isnan(ratio).any() or np.isposinf(ratio).any():
        raise ValueError(
            "Expected log ratios as a vector of finite numbers or -inf, got shape "
            f"{ratio.shape} with {int(np.isnan(ratio).sum())} NaN and "
            f"{int(np.isposinf(ratio).sum())} +inf: count such draws and take them out first."
        )
    out = np.full(ratio.shape, -np.inf)
    inside = np.isfinite(ratio)
    finite = ratio[inside]
    if finite.size == 0:
        return out, math.inf
    with np.errstate(over="ignore"):  # a difference beyond 1e308 is as good as -inf
        finite -= finite.max()
    raw = finite - np.log(np.exp(finite).sum())
    khat = math.inf
    smooth = raw
    if finite.size >= MIN_PSIS_DRAWS:
        if np.ptp(finite) == 0.0:
            khat = 0.0
        elif np.sort(finite)[-tail_length(finite.size) - 1] > LOG_TINY:
            smooth, khat = _arviz_psislw(finite)
    if not np.isfinite(smooth).all() or math.isnan(khat):
        smooth, khat = raw, math.inf
    out[inside] = smooth
    return out, khat


def rhat_and_ess(draws: NDArray[Any]) -> tuple[float, float, float]:
    """R-hat and effective numbers of draws of one quantity, equal on either line of ArviZ.

    Args:
        draws: shape (chains, draws), at least 4 draws a chain.

    Returns:
        Rank-normalised split R-hat, bulk ESS and tail ESS (of the 5% and 95% quantiles). The two
        halves of a single chain count as two. All are NaN where a draw isn't finite, or all draws
        are equal.

    Raises:
        ValueError: fewer than 4 draws, or another number of axes.

    Reference: Vehtari et al. (2021), Rank-normalization, folding, and localization, Bayesian
    Analysis 16(2).

    Example:
        >>> rhat, bulk, tail = rhat_and_ess(np.random.default_rng(0).normal(size=(4, 500)))
        >>> rhat < 1.01, bulk > 1000, tail > 1000
        (True, True, True)
    """
    array = np.asarray(draws, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] < 4:
        raise ValueError(
            f"Expected draws of shape (chains, draws), 4 draws or more, got {array.shape}: "
            "draw more, or pass one quantity at a time."
        )
    if not np.isfinite(array).all() or (array == array[0, 0]).all():
        return math.nan, math.nan, math.nan
    half = array.shape[1] // 2
    several = array if len(array) > 1 else array[:, : 2 * half].reshape(2, half)
    # Chains that don't move at all divide by zero; half a chain may be too short for ArviZ.
    with np.errstate(all="ignore"):
        if arviz_major() >= 1:
            from arviz_stats.base import array_stats as stats

            axes = {"chain_axis": 0, "draw_axis": 1}
            rhat = stats.rhat(several, **axes) if several.shape[1] >= 4 else math.nan
            bulk = stats.ess(array, method="bulk", **axes)
            tail = stats.ess(array, method="tail", prob=(0.05, 0.95), **axes)
        else:
            az = import_arviz()
            rhat = az.rhat(several) if several.shape[1] >= 4 else math.nan
            bulk, tail = az.ess(array, method="bulk"), az.ess(array, method="tail")
    return float(rhat), float(bulk), float(tail)


def elpd_data(
    elpd_i: NDArray[Any],
    khat_i: NDArray[Any],
    *,
    elpd: float,
    se: float,
    p_loo: float,
    n_draws: int,
    threshold: float,
    dims: Sequence[str],
    coords: Mapping[str, Sequence[Any]],
) -> Any:
    """A result of leave-one-out cross-validation as ArviZ's own ``ELPDData``, on either line.

    Args:
        elpd_i: log predictive density of each point, any shape.
        khat_i: k-hat of each point, the same shape.
        elpd: the sum.
        se: its standard error.
        p_loo: effective number of parameters.
        n_draws: number of draws.
        threshold: the k-hat below which a point is good.
        dims: names of the axes of ``elpd_i``.
        coords: labels along them; 0, 1, ... where none are given.

    Returns:
        What ``az.loo(..., pointwise=True)`` returns: a ``pandas.Series`` on ArviZ 0.x, a
        dataclass on 1.x.

    Raises:
        ImportError: if ArviZ is not installed.

    Example:
        >>> found = elpd_data(
        ...     -np.ones(3), np.zeros(3), elpd=-3.0, se=0.0, p_loo=1.0, n_draws=100,
        ...     threshold=0.5, dims=["point"], coords={},
        ... )
        >>> found.pareto_k.shape
        (3,)
    """
    import xarray as xr

    sizes = zip(dims, elpd_i.shape, strict=True)
    labels = {dim: np.asarray(coords.get(dim, range(size))) for dim, size in sizes}
    pointwise, khats = (xr.DataArray(x, coords=labels, dims=dims) for x in (elpd_i, khat_i))
    common = {"se": se, "n_samples": n_draws, "n_data_points": elpd_i.size, "scale": "log"}
    common |= {"warning": bool((~(khat_i < threshold)).any()), "good_k": threshold}
    if arviz_major() >= 1:
        from arviz_stats import utils

        make = getattr(utils, "ELPDDataLOO", None) or functools.partial(utils.ELPDData, kind="loo")
        more = {"elpd": elpd, "p": p_loo, "elpd_i": pointwise.rename("elpd_i")}
        return make(**common, **more, pareto_k=khats.rename("pareto_k"), approx_posterior=True)
    from arviz.stats import ELPDData

    # compare tells the kind of result from the first name.
    entries = {"elpd_loo": elpd, "p_loo": p_loo, **common, "loo_i": pointwise.rename("loo_i")}
    entries["pareto_k"] = khats.rename("pareto_shape")
    return ELPDData(data=list(entries.values()), index=list(entries))


def compare_elpd(results: Mapping[str, Any]) -> Any:
    """``az.compare`` with stacking weights, and the same columns on either line.

    Args:
        results: name to what ``elpd_data`` returned.

    Returns:
        A ``pandas.DataFrame``, the best first: "rank", "elpd", "p_loo", "elpd_diff" (never
        positive, as on 1.x), "dse", "se", "weight"; unrounded.

    Raises:
        ImportError: if ArviZ is not installed.

    Example: see ``compare_loo``.
    """
    az = import_arviz()
    if arviz_major() >= 1:
        table = az.compare(dict(results), method="stacking", round_to="none")
        table = table.rename(columns={"p": "p_loo"})
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The inplace keyword", DeprecationWarning)
            table = az.compare(dict(results), ic="loo", method="stacking", scale="log")
        table = table.rename(columns={"elpd_loo": "elpd"})
        table["elpd_diff"] = 0.0 - table["elpd_diff"]
    return table[["rank", "elpd", "p_loo", "elpd_diff", "dse", "se", "weight"]].copy()


def save_netcdf(data: Any, path: str | os.PathLike[str]) -> Path:
    """Write a container to one netCDF file, which both lines of ArviZ can read.

    Args:
        data: what ``to_container`` returned.
        path: the file; one that exists is replaced.

    Returns:
        The path.

    Raises:
        ImportError: if h5netcdf is not installed.

    Example:
        >>> import tempfile
        >>> data = to_container({"training": {"elbo": np.zeros(9)}}, dims={}, coords={}, attrs={})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_netcdf(data, folder + "/fit.nc").name
        'fit.nc'
    """
    _need_h5netcdf()
    path = Path(path)
    if arviz_major() >= 1:
        data.to_netcdf(path, engine="h5netcdf")
    else:
        # Draws are noise: compressing them costs time and saves little.
        data.to_netcdf(str(path), engine="h5netcdf", compress=False)
    return path


def load_netcdf(path: str | os.PathLike[str]) -> Any:
    """Read a file of ``save_netcdf`` into memory; the file is closed and may be replaced.

    Args:
        path: the file.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if h5netcdf is not installed.

    Example:
        >>> import tempfile
        >>> data = to_container({"training": {"elbo": np.zeros(9)}}, dims={}, coords={}, attrs={})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load_netcdf(save_netcdf(data, folder + "/fit.nc"))
        >>> group_dataset(again, "training")["elbo"].shape
        (9,)
    """
    _need_h5netcdf()
    az = import_arviz()
    if not Path(path).exists():
        raise FileNotFoundError(f"Expected a saved result at {str(path)!r}, got no such file.")
    if arviz_major() >= 1:
        import xarray as xr

        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    with az.rc_context({"data.load": "eager"}):
        return az.InferenceData.from_netcdf(str(path), engine="h5netcdf")


def tail_length(n: int) -> int:
    """Draws in the right tail, as in Vehtari et al. (2024) and both lines of ArviZ."""
    return math.ceil(min(n / 5.0, 3.0 * math.sqrt(n)))


def _arviz_psislw(log_ratio: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    with np.errstate(all="ignore"):
        try:
            smooth, khat = _psislw_function()(log_ratio)
        except ValueError:  # "All tail values are the same" on 1.x, where 0.x answers inf
            return log_ratio - np.log(np.exp(log_ratio).sum()), math.inf
    return np.asarray(smooth, dtype=np.float64), float(khat)


@functools.cache  # looking up a version reads a file, which takes as long as the fit of a tail
def _psislw_function() -> Callable[[NDArray[np.float64]], tuple[Any, Any]]:
    if arviz_major() >= 1:
        from arviz_stats.base import array_stats

        # The opposite sign: 1.x takes log likelihoods, that is log q - log p.
        return lambda log_ratio: array_stats.psislw(-log_ratio)
    return import_arviz().psislw


def _need_h5netcdf() -> None:
    if importlib.util.find_spec("h5netcdf") is None:
        raise ImportError("Reading and writing results needs h5netcdf: pip install h5netcdf h5py.")
