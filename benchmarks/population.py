"""A population against its members one after another: `python -m benchmarks.population [--rounds N]`.

Sixteen MLPs on the digits, each with a seed and a rate of its own, through `fit`: compiled before, so that what is
timed is the training. Memory is what XLA sets aside for a step.
"""

import argparse
import datetime
import platform

import jax
import numpy as np

import fntrain as ft
from benchmarks._measure import interleaved, table
from fntrain import demo, population

MEMBERS, EPOCHS = 16, 4


def loss_fn(params, batch, ctx):
    return ft.losses.cross_entropy(demo.apply(params, batch["image"]), batch["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    prepared = demo.prepare(demo.Options())
    task = ft.Task(loss_fn, ft.with_hyperparams(ft.optimizers.adam, learning_rate=1e-3))
    rates = np.geomspace(1e-4, 1e-2, MEMBERS).tolist()
    states = population.init(
        task, prepared.state.params, seeds=range(MEMBERS), hyperparams={"learning_rate": rates}
    )
    alone = [population.member(states, i) for i in range(MEMBERS)]
    options = dict(epochs=EPOCHS, batch_size=32, validation_data=prepared.validation, progress=False)

    def together():
        jax.block_until_ready(population.fit(task, states, prepared.data, **options).state.params)

    def one_by_one():
        for state in alone:
            jax.block_until_ready(ft.fit(task, state, prepared.data, **options).state.params)

    medians = interleaved(
        {"one population": together, "16 runs of fit": one_by_one}, rounds=arguments.rounds, warmup=1
    )
    batch = jax.tree.map(lambda x: x[:32], prepared.data)
    peaks = [ft.tools.compile_report(task, state, batch).peak_bytes for state in (states, alone[0])]
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"medians of {arguments.rounds} interleaved rounds, {EPOCHS} epochs\n"
    )
    base = medians["16 runs of fit"]
    rows = [
        [name, f"{seconds:.3f}", f"{seconds / base:.3f}", f"{peak / 1e6:.2f}"]
        for (name, seconds), peak in zip(medians.items(), peaks)
    ]
    print(table(rows, ["", "seconds", "ratio", "MB of a step"]))


if __name__ == "__main__":
    main()
