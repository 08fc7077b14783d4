# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Reads a checkout of posteriordb: data sets, reference draws, and our table of log Z."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_LAYOUT = ("posteriordb/posterior_database", "posterior_database", ".")
_INDEXED = re.compile(r"(?P<base>[^\[]+)\[(?P<index>[\d,]+)\]$")


class MissingData(FileNotFoundError):
    """A file of posteriordb isn't where it was looked for; the message says how to get it."""


@dataclass(frozen=True)
class Draws:
    """Reference draws of one posterior, under Stan's names.

    Attributes:
        names: Stan's scalar names, such as ``theta[1]`` or ``tau``.
        array: The draws, of shape ``(chain, draw, param)``.
    """

    names: tuple[str, ...]
    array: np.ndarray

    def variables(self) -> dict[str, np.ndarray]:
        """Joins ``theta[1]``, ``theta[2]``, ... into arrays.

        Returns:
            A dict from Stan's variable to an array of shape ``(chain * draw, *shape)``, with the
            draws of one chain next to each other.
        """
        flat = self.array.reshape(-1, len(self.names))
        columns: dict[str, dict[tuple[int, ...], int]] = {}
        for column, name in enumerate(self.names):
            match = _INDEXED.match(name)
            base = match["base"] if match else name
            index = tuple(int(i) - 1 for i in match["index"].split(",")) if match else ()
            columns.setdefault(base, {})[index] = column
        out = {}
        for base, where in columns.items():
            shape = tuple(1 + max(axis) for axis in zip(*where, strict=True))
            out[base] = np.empty((len(flat), *shape))
            for index, column in where.items():
                out[base][(slice(None), *index)] = flat[:, column]
        return out


@dataclass(frozen=True)
class LogZ:
    """One row of the table of log Z, in Stan's convention.

    Attributes:
        value: log Z, with flat priors counted as 1 and half-priors not renormalised.
        se: Its standard error; 0 where it is exact.
        n_half_priors: The half-priors that Pyro normalises and Stan doesn't.
    """

    value: float
    se: float
    n_half_priors: int


class Database:
    """A checkout of posteriordb on this disk.

    Args:
        root: A folder that holds ``posteriordb/posterior_database`` (for example
            ``../shared/data``), a checkout of posteriordb, or its ``posterior_database``.

    Raises:
        MissingData: If no such folder is there.
    """

    def __init__(self, root: str | Path) -> None:
        places = [Path(root) / part for part in _LAYOUT]
        found = [place for place in places if (place / "posteriors").is_dir()]
        if not found:
            raise MissingData(
                f"No posteriordb was found under {root}. Get it by `git clone "
                "https://github.com/stan-dev/posteriordb` and give the path of that checkout, "
                "or of the folder that holds it."
            )
        self.path = found[0].resolve()

    def info(self, posterior: str) -> dict[str, Any]:
        """Gives the entry of a posterior, such as ``nes2000-nes``."""
        return json.loads(self._existing(f"posteriors/{posterior}.json").read_text())

    def data(self, posterior: str) -> dict[str, Any]:
        """Gives the data set of a posterior, under Stan's names."""
        return self._zipped(f"data/data/{self.info(posterior)['data_name']}.json.zip")

    def draws(self, posterior: str) -> Draws:
        """Gives the reference draws of a posterior.

        Raises:
            MissingData: If posteriordb has no draws of it.
        """
        name = self.info(posterior)["reference_posterior_name"]
        if name is None:
            raise MissingData(
                f"posteriordb has no reference draws of {posterior}. Make them by a long run of "
                "NUTS, or leave this posterior out where draws are needed."
            )
        chains = self._zipped(f"reference_posteriors/draws/draws/{name}.json.zip")
        names = tuple(chains[0])
        array = np.array([[chain[n] for n in names] for chain in chains], dtype=np.float64)
        return Draws(names, array.transpose(0, 2, 1))

    def summary(
        self, posterior: str, statistic: str
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Gives a summary of the reference draws, such as ``mean_value``, with its errors.

        Returns:
            The values and their Monte Carlo standard errors, each by Stan's variable.
        """
        name = self.info(posterior)["reference_posterior_name"]
        folder = f"reference_posteriors/summary_statistics/{statistic}/{statistic}"
        table = json.loads(self._existing(f"{folder}/{name}.json").read_text())

        def joined(column: str) -> dict[str, np.ndarray]:
            draw = Draws(tuple(table["names"]), np.array(table[column], dtype=np.float64))
            return {variable: value[0] for variable, value in draw.variables().items()}

        return joined(statistic), joined("mcse_mean")

    def log_z(self, posterior: str) -> LogZ | None:
        """Gives log Z of a posterior from ``posteriordb_logz.csv``, if the table has it.

        The table is no part of posteriordb; it is looked for beside the checkout.
        """
        for folder in (self.path, *self.path.parents[:2]):
            table = folder / "posteriordb_logz.csv"
            if table.is_file():
                with table.open(newline="") as lines:
                    rows = {row["posterior"]: row for row in csv.DictReader(lines)}
                if posterior not in rows:
                    return None
                row = rows[posterior]
                return LogZ(float(row["logZ"]), float(row["logZ_se"]), int(row["n_half_priors"]))
        return None

    def _existing(self, relative: str) -> Path:
        path = self.path / relative
        if not path.is_file():
            raise MissingData(
                f"{path} is missing: this checkout of posteriordb is not whole, or the name is "
                "not one of its names. Compare it with "
                "https://github.com/stan-dev/posteriordb/tree/master/posterior_database."
            )
        return path

    def _zipped(self, relative: str) -> Any:
        with zipfile.ZipFile(self._existing(relative)) as archive:
            return json.loads(archive.read(archive.namelist()[0]))
