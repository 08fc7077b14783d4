# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How good are the densities: FlowDensity against a Gaussian mixture, zuko and nflows.

    python tests/benchmarks/density.py --data DATA --models ours zuko nflows gmm --seconds 60
    python tests/benchmarks/density.py --data DATA --conditional
    python tests/benchmarks/density.py --data DATA --bsds --models ours zuko --seconds 1800
    python tests/benchmarks/density.py --table

``DATA`` holds joint_density/, uci_regression_splits/ and bsds300/. One JSON line a fit is added to
``--out``, and the log density of each test row is kept beside it, so that models are compared row
by row; fits that are there already are not made again.

The peers are optional (pip install -c constraints.txt -e ".[peers]"). They
are fitted through FlowDensity: the same standardisation, optimiser, schedule, validation rows and
best state, with the learning rate that is usual for them. Only the flow is theirs: zuko's NSF as
it comes; nflows' RQ-NSF (C) by the recipe of its paper (Durkan et al. 2019) for its smallest set,
and for BSDS300 by that for BSDS300.

``--clock cpu`` counts the processor's time, for a machine that does other things meanwhile.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pyro_flows.density.flow_density
import pyro_flows.training.loop
from pyro_flows import FlowDensity

JOINT = ("protein", "magic", "htru2", "power_plant", "texture")
CONDITIONAL = ("power-plant", "protein-tertiary-structure")
# Recorded to so much: without noise of that size a density grows without bound.
RESOLUTION = {"protein-tertiary-structure": 0.001}
# Patches of BSDS300: 1,000,000 as published takes hours; the test set is the published one's size.
PATCHES = {"n_train": 200_000, "n_val": 10_000, "n_test": 50_000}


class Zuko(nn.Module):
    """zuko's neural spline flow, with its own defaults."""

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.NSF(dim, context_dim)

    def log_prob(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.flow(context).log_prob(x)


class NFlows(nn.Module):
    """nflows' RQ-NSF (C)."""

    def __init__(self, dim: int, context_dim: int = 0, *, large: bool = False) -> None:
        super().__init__()
        from nflows import distributions, flows, transforms
        from nflows.nn.nets import ResidualNet
        from nflows.utils import create_alternating_binary_mask

        steps, hidden, bins = (20, 128, 8) if large else (10, 32, 4)

        def net(kept: int, moved: int) -> nn.Module:
            return ResidualNet(
                kept,
                moved,
                hidden_features=hidden,
                context_features=context_dim or None,
                num_blocks=1,
                dropout_probability=0.2,
            )

        layers: list[nn.Module] = []
        for step in range(steps):
            layers += [transforms.RandomPermutation(dim), transforms.LULinear(dim)]
            layers.append(
                transforms.PiecewiseRationalQuadraticCouplingTransform(
                    create_alternating_binary_mask(dim, even=step % 2 == 0),
                    net,
                    num_bins=bins,
                    tails="linear",
                    tail_bound=3.0,
                )
            )
        layers += [transforms.RandomPermutation(dim), transforms.LULinear(dim)]
        base = distributions.StandardNormal([dim])
        self.flow = flows.Flow(transforms.CompositeTransform(layers), base)

    def log_prob(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        return self.flow.log_prob(x, context)


class Mixture:
    """The floor: Gaussian mixtures with full covariances, the best by validation."""

    def fit(self, x: Any, context: Any = None, *, validation: Any = None) -> Mixture:
        from sklearn.mixture import GaussianMixture

        if context is not None:
            raise SystemExit("The Gaussian mixture is for joint densities only.")
        started, fits = time.monotonic(), []
        for components in (5, 10, 20, 40):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = GaussianMixture(components, random_state=0, reg_covar=1e-5).fit(x)
            fits.append((fit.score(validation), components, fit))
        self.best_score_, self.n_steps_, self.best = max(fits, key=lambda f: f[0])
        self.stop_reason_, self.flow_ = f"{self.n_steps_} components", nn.Module()
        self.seconds_ = time.monotonic() - started
        return self

    def score_samples(self, x: Any, context: Any = None) -> Any:
        return self.best.score_samples(x)


def make(model: str, args: argparse.Namespace) -> Any:
    """The estimator of a model, before fitting."""
    if model == "gmm":
        return Mixture()
    if model == "zuko":
        check = torch.distributions.Distribution._validate_args
        import zuko  # noqa: F401 (importing it switches off the checks of all distributions)

        torch.distributions.Distribution.set_default_validate_args(check)
        flow: Any = Zuko
    elif model == "nflows":
        large = args.bsds

        def flow(dim: int, context_dim: int = 0) -> nn.Module:
            return NFlows(dim, context_dim, large=large)
    else:
        flow = args.flow
    options = json.loads(args.flow_options) if model == "ours" else None
    limit = {"max_seconds": args.seconds, **json.loads(args.fit_options)}
    if model != "ours":
        limit["learning_rate"] = args.peer_learning_rate
    return FlowDensity(flow, flow_options=options, seed=args.seed, progress=args.progress, **limit)


def joint(args: argparse.Namespace) -> Any:
    """(set, split, train, validation, test) of the joint densities."""
    for name in args.sets or JOINT:
        with np.load(args.data / "joint_density" / f"{name}.npz") as z:
            parts = [(z[part], None) for part in ("train", "val", "test")]
        yield name, None, *parts


def conditional(args: argparse.Namespace) -> Any:
    """The same of the regressions: y given X, a tenth of the training rows for validation."""
    for name in args.sets or CONDITIONAL:
        with np.load(args.data / "uci_regression_splits" / f"{name}.npz") as z:
            context, y, tests = z["X"], z["y"].reshape(-1, 1), z["test_index"]
        rng = np.random.default_rng(0)
        y = y + RESOLUTION.get(name, 0.0) * rng.uniform(size=y.shape)
        for split, test in enumerate(tests[: args.splits]):
            rest = np.random.default_rng(split).permutation(np.setdiff1d(np.arange(len(y)), test))
            held = len(rest) // 10
            yield name, split, *((y[i], context[i]) for i in (rest[held:], rest[:held], test))


def bsds(args: argparse.Namespace) -> Any:
    """The same of the image patches."""
    folder = args.data / "bsds300"
    sys.path.insert(0, str(folder))
    from patches import load

    yield "bsds300", None, *((part, None) for part in load(str(folder), **PATCHES, seed=0))


def fit(model: str, name: str, split: int | None, parts: Any, args: argparse.Namespace) -> Any:
    """Fit, score the test rows, and describe it in one JSON line."""
    train, validation, test = parts
    torch.manual_seed(args.seed)
    load, cpu = os.getloadavg()[0], time.process_time()
    estimator = make(model, args)
    estimator.fit(*train, validation=validation if train[1] is not None else validation[0])
    cpu = time.process_time() - cpu
    scores = np.asarray(estimator.score_samples(*test), dtype=np.float64)
    return scores, {
        "set": name,
        "model": model,
        "tag": args.tag,
        "split": split,
        "limit": args.seconds,
        "clock": args.clock,
        "threads": args.threads,
        "seed": args.seed,
        "options": options_of(model, args),
        "test": float(scores.mean()),
        "se": float(scores.std() / math.sqrt(len(scores))),
        "validation": estimator.best_score_,
        "seconds": estimator.seconds_,
        "cpu_seconds": cpu,
        "load": load,
        "steps": estimator.n_steps_,
        "parameters": sum(p.numel() for p in estimator.flow_.parameters()),
        "stop": estimator.stop_reason_,
    }


def key(line: dict[str, Any]) -> str:
    """What makes a fit the same fit."""
    names = ("set", "model", "tag", "split", "limit", "clock", "threads", "seed")
    options = line.get("options", "")
    return "_".join([*(str(line[name]) for name in names), *([options] if options else [])])


def options_of(model: str, args: argparse.Namespace) -> str:
    """A few letters that stand for options other than the defaults; nothing for the defaults."""
    own = {"flow": args.flow, "flow_options": args.flow_options}
    asked = {"fit_options": args.fit_options, **(own if model == "ours" else {})}
    if model != "ours":
        asked["peer_learning_rate"] = args.peer_learning_rate
    usual = {"flow": "nsf", "flow_options": "{}", "fit_options": "{}", "peer_learning_rate": 1e-3}
    other = {name: value for name, value in asked.items() if value != usual[name]}
    return hashlib.sha1(json.dumps(other).encode()).hexdigest()[:8] if other else ""


def run(args: argparse.Namespace) -> None:
    """Make all fits that are not in the results yet."""
    kept = args.out.with_suffix(".scores")
    kept.mkdir(parents=True, exist_ok=True)
    have = {key(line) for line in read(args.out)}
    if args.clock == "cpu":
        for module in (pyro_flows.training.loop, pyro_flows.density.flow_density):
            module.now = time.process_time
    for name, split, *parts in (bsds if args.bsds else conditional if args.conditional else joint)(
        args
    ):
        for model in args.models:
            asked = {**vars(args), "set": name, "model": model, "split": split}
            asked["limit"], asked["options"] = args.seconds, options_of(model, args)
            if key(asked) in have:
                continue
            scores, line = fit(model, name, split, parts, args)
            np.save(kept / f"{key(line)}.npy", scores)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(args: argparse.Namespace) -> None:
    """Means, and how far ours is ahead, row by row of the test set."""
    kept = args.out.with_suffix(".scores")
    groups: dict[Any, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for line in read(args.out):
        label = f"{line['model']}{':' + line['tag'] if line['tag'] else ''}"
        scores = np.load(kept / f"{key(line)}.npy")
        groups[line["set"], line["limit"] if line["model"] != "gmm" else None][label].append(
            (line, scores)
        )
    for (name, limit), models in sorted(groups.items(), key=str):
        if limit is None:
            continue
        models = {**groups.get((name, None), {}), **models}
        print(f"\n{name}, {limit:g} s")
        ours = [label for label in models if label.startswith("ours")]
        for label, fits in models.items():
            means = np.array([line["test"] for line, _ in fits])
            se = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else fits[0][0]["se"]
            steps = int(np.mean([line["steps"] for line, _ in fits]))
            text = f"  {label:24} {means.mean():9.3f} ± {se:.3f}  fits {len(fits)}, steps {steps}"
            if label not in ours:
                for own in ours:
                    text += f"; {own} - it {compare(models[own], fits)}"
            print(text)


def compare(ours: list[Any], theirs: list[Any]) -> str:
    """The paired difference of test rows over the fits both have, in words."""
    others = {(line["split"], line["seed"]): scores for line, scores in theirs}
    pairs = [
        scores - others[line["split"], line["seed"]]
        for line, scores in ours
        if (line["split"], line["seed"]) in others
    ]
    if not pairs:
        return "not compared"
    gaps = np.concatenate(pairs)
    mean, se = gaps.mean(), gaps.std(ddof=1) / len(gaps) ** 0.5
    verdict = "ahead" if mean > 2 * se else "behind" if mean < -2 * se else "level"
    return f"{mean:+.3f} ± {se:.3f} {verdict}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tabular"))
    parser.add_argument("--sets", nargs="*", help="by default all")
    parser.add_argument("--models", nargs="*", default=["ours"], help="ours zuko nflows gmm")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of each fit")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conditional", action="store_true", help="regressions, y given X")
    parser.add_argument("--splits", type=int, default=20, help="of them, the first so many")
    parser.add_argument("--bsds", action="store_true", help="patches of BSDS300")
    parser.add_argument("--flow", default="nsf", help="ours")
    parser.add_argument("--flow-options", default="{}", help="of ours, as JSON")
    parser.add_argument("--fit-options", default="{}", help="of FlowDensity, for all, as JSON")
    parser.add_argument(
        "--peer-learning-rate",
        type=float,
        default=1e-3,
        help="our networks are scaled for a larger one than is usual; this is theirs",
    )
    parser.add_argument("--tag", default="", help="a name for such options")
    parser.add_argument("--out", type=Path, default=Path("density.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is in --out, fit nothing")
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table(arguments) if arguments.table else run(arguments)
