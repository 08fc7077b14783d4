# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Time sampling from 64-dimensional autoregressive flows of 5 layers, beside zuko's.

Both are trained for as many steps, on the same correlated data, by the same optimiser, and draw in
turns; medians, one thread. One JSON line a figure. ``python tests/benchmarks/sampling_speed.py``
with zuko 1.6 on the path (``--without-zuko`` for our own figures alone).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from unittest import mock

import torch

from pyro_flows.distributions import Flow
from pyro_flows.transforms import AffineAutoregressive, SplineAutoregressive

DIM, LAYERS, HIDDEN, BINS = 64, 5, (64, 64), 8


def data(count, seed):
    """A random walk through a bend: neighbours depend on each other, some by their spread."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, DIM, generator=generator)
    columns = [noise[:, 0]]
    for i in range(1, DIM):
        before = columns[-1]
        spread = (0.3 * torch.tanh(2 * before)).exp()
        columns.append(0.7 * before + 0.3 * torch.sin(2 * before) + 0.6 * spread * noise[:, i])
    x = torch.stack(columns, 1)
    return (x - x.mean(0)) / x.std(0)


def ours(kind):
    def layer(k):
        order = ("natural", "reversed")[k % 2]
        if kind == "maf":
            return AffineAutoregressive(DIM, order=order, hidden_dims=HIDDEN).inv
        # The other direction of zuko's: bins on the base side. Its inverse would do as well.
        return SplineAutoregressive(DIM, order=order, hidden_dims=HIDDEN, bins=BINS).inv

    return Flow([layer(k) for k in range(LAYERS)])


def zukos(kind):
    import zuko

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"transforms": LAYERS, "hidden_features": HIDDEN}
        if kind == "maf":
            return zuko.flows.MAF(DIM, **options)
        return zuko.flows.NSF(DIM, bins=BINS, **options)


def train(flow, steps, seed):
    x = data(20000, seed)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        batch = x[torch.randint(len(x), (256,), generator=generator)]
        loss = -flow().log_prob(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return statistics.mean(losses[-50:])


def seconds(run, repeats):
    """How long several things take, run in turns, ``repeats`` times each."""
    times = {name: [] for name in run}
    for call in run.values():
        call()
    for _ in range(repeats):
        for name, call in run.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def counted(calls, layer):
    """The univariate's inverse, which is called once a pass, noting its calls."""
    inverse = type(layer.univariate).inverse_and_ladj

    def call(univariate, y, params):
        calls.append(1)
        return inverse(univariate, y, params)

    return call


@torch.no_grad()
def draw(flow, z, how):
    """Base to data, by one way of inverting; also the most passes that a layer made."""
    x, most = z, 0
    for layer in flow.transform.layers:
        inner, calls = layer.inv, []
        if how == "all passes":
            y = x
            for _ in range(DIM):
                x = inner.univariate.inverse_and_ladj(y, inner._params(x, None))[0]
            continue
        with mock.patch.object(type(inner.univariate), "inverse_and_ladj", counted(calls, inner)):
            x = getattr(inner, how)(x)[0]
        most = max(most, len(calls))
    return x, most


def report(**figures):
    print(json.dumps(figures), flush=True)


def compare(kind, options):
    torch.manual_seed(options.seed)
    flow = ours(kind)
    loss = train(flow, options.steps, options.seed)
    peer = None
    if not options.without_zuko:
        peer = zukos(kind)
        peer_loss = train(peer, options.steps, options.seed)
        report(figure="training loss", flow=kind, ours=loss, zuko=peer_loss)
    z = torch.randn(1000, DIM)
    exact, by_passes, by_steps = (
        draw(flow, z, how) for how in ("all passes", "by_passes", "by_steps")
    )
    for name, (x, passes) in (("early stop", by_passes), ("steps", by_steps)):
        away = (x - exact[0]).abs().max().item()
        report(figure=f"{name} against all {DIM} passes", flow=kind, away=away, passes=passes)
    for batch in options.batches:
        z = torch.randn(batch, DIM)
        run = {
            "ours": lambda: flow().sample((batch,)),  # noqa: B023
            "by_steps": lambda: draw(flow, z, "by_steps"),  # noqa: B023
            "by_passes": lambda: draw(flow, z, "by_passes"),  # noqa: B023
        }
        if peer is not None:
            run["zuko"] = lambda: peer().sample((batch,))  # noqa: B023
        with torch.no_grad():
            times = seconds(run, options.repeats)
        # The fastest beside the median: on a busy machine the median tells of the others too.
        for figure, best in (("median", statistics.median), ("fastest", min)):
            t = {name: best(of) for name, of in times.items()}
            if peer is not None:
                t["ratio"] = t["ours"] / t["zuko"]
            report(figure=f"{figure} seconds to sample", flow=kind, batch=batch, **t)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", nargs="+", default=["maf", "nsf"])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-zuko", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for kind in options.flows:
        compare(kind, options)


if __name__ == "__main__":
    main()
