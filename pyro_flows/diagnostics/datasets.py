# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Named arrays become labelled xarray datasets that ArviZ can read and netCDF can hold.

Nothing here depends on the ArviZ that is installed. Groups, dimensions and attributes follow
ArviZ's schema; names that netCDF, DataTree or xarray would refuse are changed, in one place.
"""

from __future__ import annotations

import datetime
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray

__all__ = ["SAMPLE_GROUPS", "build_datasets", "netcdf_attributes"]

SAMPLE_GROUPS = frozenset(
    {
        "guide_draws",
        "log_likelihood",
        "log_prior",
        "posterior",
        "posterior_predictive",
        "predictions",
        "prior",
        "prior_predictive",
        "sample_stats",
        "sample_stats_prior",
        "unconstrained_posterior",
    }
)
"""Groups whose arrays begin with (chain, draw); every other group has no sample dimensions."""

SAMPLE_DIMS = ("chain", "draw")
# Their arrays lack event dimensions which the variable of the same name has elsewhere.
SUMMED_GROUPS = frozenset({"log_likelihood", "log_prior"})
# Of other data than the fit's, so a dimension may have another size, and then other labels.
OTHER_DATA = frozenset({"predictions", "predictions_constant_data"})


def build_datasets(
    groups: Mapping[str, Mapping[str, NDArray[Any]]],
    dims: Mapping[str, Sequence[str | None]],
    coords: Mapping[str, Sequence[Any]],
    group_attrs: Mapping[str, Mapping[str, Any]],
) -> dict[str, xarray.Dataset]:
    """One dataset per group that has variables; ``to_container`` describes the arguments.

    Args:
        groups: group to {variable: array}; ``(chain, draw, *shape)`` in ``SAMPLE_GROUPS``, else
            ``(*shape)``.
        dims: variable to the names of its dimensions, sample dimensions excluded.
        coords: dimension to its labels.
        group_attrs: group to attributes.

    Returns:
        Group to dataset.

    Raises:
        ValueError: if an array's shape contradicts its group, dims or coords.

    Example:
        >>> build_datasets({"training": {"elbo": np.zeros(9)}}, {}, {}, {})["training"].sizes
        Frozen({'elbo_dim_0': 9})
    """
    import xarray as xr

    stray = sorted(set(group_attrs) - set(groups))
    if stray:
        raise ValueError(
            f"Expected group_attrs for groups among {sorted(groups)}, got {stray}: "
            "add the groups, or leave their attributes out."
        )
    arrays = {group: _named_arrays(group, entries) for group, entries in groups.items()}
    variables = {name for entries in arrays.values() for name in entries}
    labels = {_dim_name(dim, variables): _labels(values) for dim, values in coords.items()}
    named = {
        _variable_name(name): [None if d is None else _dim_name(d, variables) for d in names]
        for name, names in dims.items()
    }
    lengths = {dim: len(values) for dim, values in labels.items()}
    for name, array in arrays.get("posterior", {}).items():
        for dim, size in zip(named.get(name, []), array.shape[len(SAMPLE_DIMS) :], strict=False):
            if dim is not None:
                lengths.setdefault(dim, size)
    datasets = {}
    for group, entries in arrays.items():
        axes = {
            name: _axes(
                group, name, array, named.get(name, []), {} if group in OTHER_DATA else lengths
            )
            for name, array in entries.items()
        }
        sizes = _sizes(group, entries, axes)
        if entries:
            named_axes = {
                axis: labels[axis] if lengths.get(axis) == size and axis in labels else range(size)
                for axis, size in sizes.items()
            }
            datasets[group] = xr.Dataset(
                {name: (axes[name], array) for name, array in entries.items()},
                coords={axis: np.asarray(values) for axis, values in named_axes.items()},
                attrs=_group_attributes(group, group_attrs.get(group, {})),
            )
    return datasets


def netcdf_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as netCDF can hold them.

    Args:
        attrs: name to any value.

    Returns:
        Text, numbers and arrays as they are, None as "", true and false as 1 and 0, anything else
        as JSON.

    Example:
        >>> netcdf_attributes({"elbo": -3.5, "flow": None, "config": {"layers": 4}})
        {'elbo': -3.5, 'flow': '', 'config': '{"layers": 4}'}
    """
    return {str(key): _attribute(value) for key, value in attrs.items()}


def _named_arrays(group: str, entries: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for original, values in entries.items():
        name = _variable_name(original)
        if name in arrays:
            raise ValueError(
                f"Expected names that differ after '/' is replaced by '.', got {name!r} twice in "
                f"group {group!r}: rename one of the two sites."
            )
        arrays[name] = _array(name, values)
    return arrays


def _sizes(
    group: str, arrays: Mapping[str, NDArray[Any]], axes: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    """The size of every dimension of a group; raises where two variables disagree."""
    seen: dict[str, tuple[int, str]] = {}
    for name, array in arrays.items():
        for axis, size in zip(axes[name], array.shape, strict=True):
            known, owner = seen.setdefault(axis, (size, name))
            if known != size:
                raise ValueError(
                    f"Expected dimension {axis!r} of {name!r} in group {group!r} to have size "
                    f"{known} as in {owner!r}, got {size}: give it a name of its own."
                )
    return {axis: size for axis, (size, _) in seen.items()}


def _group_attributes(group: str, attrs: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"created_at": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    if group in SAMPLE_GROUPS:
        made["sample_dims"] = list(SAMPLE_DIMS)
    return {**made, **netcdf_attributes(attrs)}


def _axes(
    group: str,
    name: str,
    array: NDArray[Any],
    names: Sequence[str | None],
    lengths: Mapping[str, int],
) -> list[str]:
    """The name of every axis of one array; raises where the shape contradicts them."""
    sample = list(SAMPLE_DIMS) if group in SAMPLE_GROUPS else []
    if array.ndim < len(sample):
        raise ValueError(
            f"Expected {name!r} in group {group!r} with shape (chain, draw, *shape), got "
            f"{array.shape}: put the missing axes in front, as in values[None]."
        )
    shape = array.shape[len(sample) :]
    own = list(names)
    if group in SUMMED_GROUPS:
        own = own[: len(shape)]
    elif group == "unconstrained_posterior":
        # Unconstraining may drop elements (simplex) or axes (Cholesky factor): names that no
        # longer fit would mislabel what is left.
        own = own if len(own) == len(shape) else [None] * len(shape)
        pairs = zip(own, shape, strict=True)
        own = [dim if lengths.get(dim or "") == size else None for dim, size in pairs]
    if len(own) > len(shape):
        raise ValueError(
            f"Expected at most {len(shape)} dims for {name!r} of shape {array.shape} in group "
            f"{group!r}, got {own}: leave out the sample dims and any dim it does not have."
        )
    own += [None] * (len(shape) - len(own))
    for dim, size in zip(own, shape, strict=True):
        if dim is not None and lengths.get(dim, size) != size:
            raise ValueError(
                f"Expected {lengths[dim]} elements along {dim!r} of {name!r} in group {group!r}, "
                f"as in coords or the posterior, got {size}: correct the coords or the dims."
            )
    return sample + [dim or f"{name}_dim_{i}" for i, dim in enumerate(own)]


def _variable_name(name: str) -> str:
    # "/" separates groups in netCDF and in DataTree, and Pyro's scope() puts it into names.
    name = str(name).replace("/", ".")
    return f"{name}_var" if name in SAMPLE_DIMS else name


def _dim_name(dim: str, variables: set[str]) -> str:
    dim = str(dim).replace("/", ".")
    while dim in variables or dim in SAMPLE_DIMS:
        dim = f"{dim}_dim"
    return dim


def _array(name: str, values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype == object:
        raise ValueError(
            f"Expected numbers or text for {name!r}, got Python objects: convert them first."
        )
    return array.astype(np.float32) if array.dtype == np.float16 else array  # netCDF has no half


def _labels(values: Sequence[Any]) -> NDArray[Any]:
    array = np.asarray(values)
    return np.array([str(v) for v in values]) if array.dtype == object else array


def _attribute(value: Any) -> Any:
    """What netCDF can hold: text, numbers, arrays; None is "", the rest JSON."""
    if value is None:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufU" and value.size:
        return value
    if isinstance(value, str) and "\0" not in value:
        return value
    if isinstance(value, float | np.floating):
        return float(value)
    if isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63:
        return int(value)
    return json.dumps(value, default=_jsonable)


def _jsonable(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)
