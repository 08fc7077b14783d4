# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""scikit-learn's conventions for an estimator, without scikit-learn."""

from __future__ import annotations

import inspect
from typing import Any

from pyro_flows.errors import DensityError


class Estimator:
    """Parameters read from the constructor's signature, where scikit-learn looks for them.

    A subclass's constructor stores its arguments under their names, unchanged, and does nothing
    else; what fitting finds ends with an underscore.
    """

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Constructor arguments by name; ``deep`` is there since scikit-learn passes it."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Any:
        """Set constructor arguments by name; returns the estimator.

        Raises:
            DensityError: there is no such argument.
        """
        names = self._names()
        for name, value in params.items():
            if name not in names:
                raise DensityError(
                    f"{type(self).__name__} has no parameter {name!r}. It has {', '.join(names)}."
                )
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn's tools ask of an estimator; they have imported it already."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="density_estimator",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "flow_")

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        shown = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if repr(value) != repr(defaults[name].default)  # arrays can't be compared for a bool
        ]
        return f"{type(self).__name__}({', '.join(shown)})"
