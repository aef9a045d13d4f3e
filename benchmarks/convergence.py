"""What today's optimizers give, in steps, losses and curvature: `python -m benchmarks.convergence [PART …]`.

The parts are `width`, `free`, `prodigy`, `matrices` and `flat`; without one all are run, in half an hour on two busy
cores. A grid of rates and seeds is one population, but in `matrices`, which has a file of its own. There, in `free` and
in `prodigy` rates are chosen by other seeds than those they are then held to. What is given is the median of the seeds,
and from the least to the most.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import fntrain as ft
from benchmarks._measure import spread, table
from benchmarks.updates import matrices
from fntrain import population

SEEDS = (0, 1, 2, 3, 4)
CHOOSING = (100, 101, 102)
FOLDS = 5


def members(
    task: ft.Task, init_params: Any, rates: Iterable[float] | None, seeds: Iterable[int]
) -> ft.TrainState:
    """A population of all rates with all seeds, rate by rate; without rates, of the seeds."""
    if rates is None:
        return population.init(task, init_params, seeds=list(seeds))
    pairs = [(rate, seed) for rate in rates for seed in seeds]
    rate_of, seed_of = zip(*pairs)
    return population.init(task, init_params, seeds=seed_of, hyperparams={"learning_rate": rate_of})


def with_rate(factory: Callable[..., Any]) -> ft.transforms.Transform:
    """A transform whose rate stands in the state, so that members have their own."""
    return ft.transforms.with_hyperparams(factory, learning_rate=1e-3)


def losses(task: ft.Task, states: ft.TrainState, data: Any) -> np.ndarray:
    """The loss of every member on the whole of the data."""
    return np.asarray(ft.compute_metrics(task, ft.eval_step(task, states, data))["loss"])


def batches(data: Any, steps: int, size: int, seed: int = 0) -> Any:
    """Rows drawn anew for each step, `[steps, size, …]`."""
    rows = np.random.default_rng(seed).integers(0, len(jax.tree.leaves(data)[0]), (steps, size))
    return jax.tree.map(lambda x: x[rows], data)


def best(rates: list[float], found: np.ndarray) -> float:
    """The rate whose mean over seeds is the least; `found` is rate by rate."""
    means = np.nan_to_num(found, nan=np.inf).reshape(len(rates), -1).mean(axis=1)
    return rates[int(np.argmin(means))]


def split(data: Any, fold: int = 0) -> tuple[Any, Any]:
    """Four fifths, and the rows of the fold."""
    held_out = np.arange(len(data[0])) % FOLDS == fold
    return tuple(tuple(x[mask] for x in data) for mask in (~held_out, held_out))  # type: ignore[return-value]


def digits() -> tuple[Any, Any]:
    """The handwritten digits, for training and held out."""
    x, y = datasets.load_digits(return_X_y=True)
    return split(((x / 16).astype(np.float32), y.astype(np.int32)))


def init_mlp(sizes: tuple[int, ...], key: jax.Array) -> dict[str, Any]:
    """Kernels with a variance of one over their inputs, and biases of zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        str(i): {"kernel": jax.random.normal(k, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for i, (k, n, m) in enumerate(zip(keys, sizes, sizes[1:]))
    }


def mlp(p: dict[str, Any], x: jax.Array) -> jax.Array:
    """What the last layer says."""
    for i in range(len(p)):
        x = (jnp.tanh(x) if i else x) @ p[str(i)]["kernel"] + p[str(i)]["bias"]
    return x


def classified(p, batch, ctx):
    """Cross-entropy of the MLP."""
    return ft.losses.cross_entropy(mlp(p, batch[0]), batch[1])


# mup: whether the best rate of width 128 is the best at 1,024.


def width(steps: int = 60) -> str:
    """The loss of each rate at two widths, with and without mup."""
    rates = [float(x) for x in np.geomspace(2.0**-12, 2.0**-6, 7)]
    train, _ = digits()
    rows, moved = batches(train, steps, 64), []
    lines = []
    for name in ("mup", "one rate for all"):
        found = {}
        for n in (128, 1024):
            base, wide = (partial(init_mlp, (64, w, w, 10)) for w in (128, n))

            def factory(learning_rate, base=base, wide=wide, name=name):
                tx = ft.optimizers.adam(learning_rate)
                return ft.transforms.mup(tx, base, wide) if name == "mup" else tx

            start = (
                (lambda key, b=base, w=wide: ft.transforms.mup_params(w(key), b)) if name == "mup" else wide
            )
            task = ft.Task(classified, with_rate(factory))
            states = members(task, start, rates, SEEDS[:3])
            states, _ = ft.train_steps(task, states, rows)
            found[n] = losses(task, states, train)
            means = found[n].reshape(len(rates), -1).mean(axis=1)
            lines.append(
                [name, str(n), *(f"{x:.3f}" for x in means), f"2^{np.log2(best(rates, found[n])):.0f}"]
            )
        moved.append(np.log2(best(rates, found[1024]) / best(rates, found[128])))
    head = ["Adam", "width", *(f"2^{np.log2(r):.0f}" for r in rates), "best"]
    said = f"From 128 to 1,024 the best rate moves by 2^{moved[0]:.0f} with mup, and by 2^{moved[1]:.0f} without."
    return f"{table(lines, head)}\n\n{said}"


# Schedule-free against a tuned linear decay.


def free(steps: int = 600) -> str:
    """Losses and accuracies at the end of a run whose length one of the two did not know."""
    train, test = digits()
    rates = [float(x) for x in np.geomspace(1e-3, 0.1, 7)]
    rows = batches(train, steps, 16)

    def decayed(learning_rate):
        decay = ft.schedules.warmup(ft.schedules.linear(1.0, 0.0, steps - 25), 25)
        return ft.chain(ft.optimizers.adamw(learning_rate, weight_decay=0.0), optax.scale_by_schedule(decay))

    def constant(learning_rate):
        rise = ft.schedules.warmup(ft.schedules.constant(1.0), 25)
        return ft.chain(ft.optimizers.adamw(learning_rate, weight_decay=0.0), optax.scale_by_schedule(rise))

    def schedule_free(learning_rate):
        return optax.contrib.schedule_free_adamw(learning_rate, warmup_steps=25)

    lines = []
    for name, factory in [
        ("linear decay", decayed),
        ("schedule-free", schedule_free),
        ("a constant rate", constant),
    ]:
        task = ft.Task(classified, with_rate(factory), metrics={"accuracy": ft.metrics.accuracy()})
        task = ft.Task(_reported, task.tx, metrics=task.metrics)
        start = partial(init_mlp, (64, 64, 10))

        def ended(rates, seeds, task=task, start=start):
            states, _ = ft.train_steps(task, members(task, start, rates, seeds), rows)
            at = jax.vmap(task.transform.evaluation_params)(states.opt_state, states.params)
            return states.replace(params=at)

        rate = best(rates, losses(task, ended(rates, CHOOSING), test))
        values = ft.compute_metrics(task, ft.eval_step(task, ended([rate], SEEDS), test))
        accuracy = 100 * np.asarray(values["accuracy"])
        lines.append([name, f"{rate:.2g}", *spread(values["loss"]), *spread(accuracy, 4)])
    return table(lines, ["AdamW with", "best of 7 rates", "held-out loss", "seeds", "accuracy, %", "seeds"])


def _reported(p, batch, ctx):
    logits = mlp(p, batch[0])
    return ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])


# Prodigy, which is given no rate, against the best of twenty.

RATES = [float(r) for r in np.geomspace(1e-5, 1.0, 20)]
FEATURES = 64


def prodigy(steps: int = 400) -> str:
    """Cross-validated accuracy (of diabetes, the part of the variance explained) on five sets of scikit-learn's.

    There are five folds: every row is scored once, by a network that has not seen it, and a row of iris is 0.7 % of a
    seed's score, one of the digits 0.06 %. Both are Adam's with the same numbers, without decay of weights, and both
    rates fall by a cosine to zero. The best of the grid is chosen by other seeds, but on the same folds, which favours
    it.
    """
    decay = optax.cosine_decay_schedule(1.0, steps)
    lines = []
    for classes, names in ((True, ("digits", "wine", "breast_cancer", "iris")), (False, ("diabetes",))):
        loss_fn = classified if classes else _squared
        adam = ft.Task(loss_fn, with_rate(partial(_decayed_adam, decay=decay)))
        free = ft.Task(loss_fn, optax.contrib.prodigy(decay))
        start = partial(init_mlp, (FEATURES, 32, 10 if classes else 1))
        all_rates, one_rate = (members(adam, start, *x) for x in ((RATES, CHOOSING), (RATES[:1], SEEDS)))
        no_rate = members(free, start, None, SEEDS)
        for name in names:
            data = _standardised(name)
            by_rate = _trained(adam, all_rates, data, steps)[0]
            rate = best(RATES, -by_rate)
            tuned, tuned_loss, _ = _trained(
                adam, ft.transforms.set_hyperparams(one_rate, learning_rate=rate), data, steps
            )
            own, own_loss, states = _trained(free, no_rate, data, steps)
            gap = own.mean() - tuned.mean()
            its = float(np.median(states.opt_state.estim_lr))
            nearest = np.argmin(np.abs(np.log(np.array(RATES) / its)))
            lines.append(
                [
                    name,
                    f"{rate:.2g}",
                    f"{its:.2g}",
                    *spread(tuned, 4),
                    *spread(own, 4),
                    f"{gap:+.2f}",
                    "yes" if gap >= -1 else "no",
                    f"{tuned_loss.mean():.2g} / {own_loss.mean():.2g}",
                    f"{by_rate.reshape(len(RATES), -1)[nearest].mean():.1f}",
                ]
            )
    head = [
        "set",
        "best rate",
        "Prodigy's own",
        "Adam there, %",
        "seeds",
        "Prodigy, %",
        "seeds",
        "gap of means",
    ]
    return table(lines, [*head, "within 1 %", "training loss, Adam / Prodigy", "Adam at Prodigy's rate, %"])


def _trained(task: ft.Task, start: ft.TrainState, data: Any, steps: int) -> tuple[Any, Any, ft.TrainState]:
    """Each member's score over all folds, in percent; its mean training loss; the states of the last fold."""
    found, finals, states = [], [], start
    for fold in range(FOLDS):
        train, test = split(data, fold)
        states, _ = ft.train_steps(task, jax.tree.map(jnp.copy, start), batches(train, steps, 32, fold))
        found.append(np.asarray(_scores(task.loss_fn is classified, states.params, test)))
        finals.append(losses(task, states, train))
    return 100 * np.mean(found, axis=0), np.mean(finals, axis=0), states


def _standardised(name: str) -> tuple[Any, Any]:
    """A set in another order, cut to whole folds; with features of zero up to 64, so that all sets are one program."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: len(x) // FOLDS * FOLDS]
    x, y = x[order], y[order]
    x = (x - x.mean(0)) / (x.std(0) + 1e-8) * (FEATURES / x.shape[1]) ** 0.5  # as large in a sum as 64 are
    x = np.pad(x, ((0, 0), (0, FEATURES - x.shape[1]))).astype(np.float32)
    return x, ((y - y.mean()) / y.std()).astype(np.float32) if name == "diabetes" else y.astype(np.int32)


def _decayed_adam(learning_rate, decay):
    return ft.chain(ft.optimizers.adam(learning_rate), optax.scale_by_schedule(decay))


def _squared(p, batch, ctx):
    return ft.losses.mse(mlp(p, batch[0])[:, 0], batch[1])


@partial(jax.jit, static_argnums=0)
def _scores(classes: bool, params: Any, data: Any) -> jax.Array:
    """Of each member, `[N]`: the part that is right; or one minus the mean squared error, of a variance of one."""

    def one(p):
        out = mlp(p, data[0])
        if classes:
            return jnp.mean(jnp.argmax(out, axis=1) == data[1])
        return 1 - jnp.mean(jnp.square(out[:, 0] - data[1]))

    return jax.vmap(one)(params)


# SAM: the largest eigenvalue of the Hessian where the loss is the same.


def flat(target: float = 0.1, most: int = 1500, window: int = 25) -> str:
    """λmax where the training loss first is at the target."""
    train, test = digits()
    start = partial(init_mlp, (64, 32, 10))
    data = tuple(jnp.asarray(x) for x in train)
    lines = []
    for name, tx in {
        "SGD": ft.optimizers.sgd(0.1, 0.9),
        "SAM, rho 0.05": ft.sam(ft.optimizers.sgd(0.1, 0.9), 0.05),
        "SAM, rho 0.2": ft.sam(ft.optimizers.sgd(0.1, 0.9), 0.2),
    }.items():
        task = ft.Task(_reported, tx, metrics={"accuracy": ft.metrics.accuracy()})
        states, rows = members(task, start, None, SEEDS), batches(train, most, 64)
        at: list[Any] = [None] * len(SEEDS)
        for i in range(0, most, window):
            states, _ = ft.train_steps(task, states, jax.tree.map(lambda x, i=i: x[i : i + window], rows))
            for m, loss in enumerate(losses(task, states, train)):
                if at[m] is None and loss <= target:
                    at[m] = (i + window, population.member(states, m))
            if None not in at:
                break
        reached = [pair for pair in at if pair is not None]
        sharp = [float(sharpest(state.params, data)) for _, state in reached]
        values = [ft.compute_metrics(task, ft.eval_step(task, state, train)) for _, state in reached]
        held = [
            100 * float(ft.compute_metrics(task, ft.eval_step(task, s, test))["accuracy"]) for _, s in reached
        ]
        lines.append(
            [
                name,
                *spread(sharp),
                *spread([v["loss"] for v in values]),
                f"{np.median([n for n, _ in reached]):.0f}",
                f"{np.median(held):.1f}",
                f"{len(reached)} of {len(SEEDS)}",
            ]
        )
    return table(lines, ["", "λmax", "seeds", "training loss", "seeds", "steps", "held out, %", "there"])


@partial(jax.jit, static_argnames="iterations")
def sharpest(params: Any, data: Any, iterations: int = 60) -> jax.Array:
    """The largest eigenvalue of the Hessian of the mean loss, by power iteration."""

    def loss(p):
        return classified(p, data, None).mean()

    def turn(v, _):
        image = jax.jvp(jax.grad(loss), (params,), (v,))[1]
        size = optax.tree.norm(image)
        return jax.tree.map(lambda x: x / size, image), optax.tree.vdot(v, image)

    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    v = jax.tree.map(lambda k, x: jax.random.normal(k, x.shape), keys, params)
    v = jax.tree.map(lambda x: x / optax.tree.norm(v), v)
    return jax.lax.scan(turn, v, length=iterations)[1][-1]


PARTS = {f.__name__: f for f in (width, free, prodigy, matrices, flat)}


def main() -> None:
    """The tables of the parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parts = parser.parse_args().parts or list(PARTS)
    kind = jax.devices()[0].device_kind
    print(
        f"{datetime.date.today()}, {platform.machine()}, {kind}, jax {jax.__version__}, optax {optax.__version__}: "
        f"`python -m benchmarks.convergence`"
    )
    for name in parts:
        start = time.perf_counter()
        said = PARTS[name]()
        first = (PARTS[name].__doc__ or "").splitlines()[0]
        print(f"\n## {name}\n\n{first}\n\n{said}\n\n{time.perf_counter() - start:.0f} s.", flush=True)


if __name__ == "__main__":
    main()
