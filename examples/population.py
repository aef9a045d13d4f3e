"""Many runs at once: a sweep of rates and seeds, cut by halves; rates that change as they train; an interval.

Run it: python examples/population.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import fntrain as ft
from fntrain import population


def init_params(key):
    first, second = jax.random.split(key)
    he = jax.nn.initializers.he_normal()
    return {"w1": he(first, (64, 64)), "b1": jnp.zeros(64), "w2": he(second, (64, 10)), "b2": jnp.zeros(10)}


def loss_fn(params, batch, ctx):
    x, y = batch
    logits = jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, labels=y)


# What differs between members stands in the state: one program serves them all.
tx = ft.chain(ft.clip_by_norm(1.0), ft.with_hyperparams(ft.optimizers.adam, learning_rate=1e-3))
task = ft.Task(loss_fn, tx, metrics={"accuracy": ft.metrics.accuracy()})


def data():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    held_out = np.arange(len(x)) % 5 == 0
    return (x[~held_out], y[~held_out]), (x[held_out], y[held_out])


def main():
    train, test = data()
    options = dict(validation_data=test, monitor="val_accuracy", progress=False)

    # Four rates with four seeds each; after 90 and 180 steps the best quarter goes on.
    grid = population.grid(seeds=range(4), learning_rate=[1e-4, 1e-3, 1e-2, 1e-1])
    states = population.init(task, init_params, **grid)
    sweep = population.fit(
        task, states, train, epochs=8, controller=population.halving(keep=0.25, every=90), **options
    )
    print(sweep)

    # The same sixteen, where the worst quarter takes over from the best, at rates near theirs.
    controller = population.pbt(quantile=0.25, factor=1.5, every=90)
    states = population.init(task, init_params, **grid)
    trained = population.fit(task, states, train, epochs=8, controller=controller, **options)
    rates = np.sort(np.asarray(ft.hyperparams(trained.state)["learning_rate"]))
    print(f"rates after population-based training: {rates[0]:.1e} to {rates[-1]:.1e}")

    # How sure is the winner's accuracy, on 360 digits? And is all of them together better than it, or is that chance?
    logits = ft.predict(task, trained.state, test)["logits"]  # [rows, members, classes]
    best = logits[:, trained.ranked()[0]].argmax(1)
    together = jax.nn.softmax(logits, -1).mean(1).argmax(1)
    low, high = ft.scores.bootstrap(lambda y, p: np.mean(y == p), test[1], best)[1:]
    print(f"95 % interval of the best {low:.4f} to {high:.4f}")
    print(f"accuracy of the ensemble {np.mean(together == test[1]):.4f}")
    print(f"the two differ, p = {ft.scores.compare(best, together, test[1]).p_value:.3f}")
    print(f"validation accuracy {np.mean(best == test[1]):.4f}")


if __name__ == "__main__":
    main()
