"""A loop of one's own: `lax.scan` around `train_step`, epochs and all in one compiled program.

`fit` is not needed: the verbs nest in any `jit`, `scan` or `vmap`. Run it: python examples/custom_loop.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fntrain as ft


def init_params(key):
    first, second = jax.random.split(key)
    w1, w2 = jax.random.normal(first, (64, 128)) / 8, jax.random.normal(second, (128, 10)) / 8
    return {"w1": w1, "b1": jnp.zeros(128), "w2": w2, "b2": jnp.zeros(10)}


def loss_fn(params, batch, ctx):
    x, y = batch
    logits = jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    return ft.losses.cross_entropy(logits, y).with_outputs(logits=logits, labels=y)


@partial(jax.jit, static_argnames=("task", "epochs", "batch_size"), donate_argnames="state")
def train(task, state, data, *, epochs, batch_size):
    rows = len(data[0])
    batches = rows // batch_size  # what does not fill a batch waits for another epoch's permutation

    def epoch(state, key):
        order = jax.random.permutation(key, rows)[: batches * batch_size].reshape(batches, batch_size)

        def step(state, index):
            return ft.train_step(task, state, jax.tree.map(lambda x: x[index], data))

        state, metrics = jax.lax.scan(step, state, order)  # of every step, stacked; batches are equal
        return state, jax.vmap(partial(ft.compute_metrics, task))(metrics)["loss"].mean()

    return jax.lax.scan(epoch, state, jax.random.split(jax.random.key(1), epochs))


if __name__ == "__main__":
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.sgd(0.1, momentum=0.9, nesterov=True))
    task = ft.Task(loss_fn, tx, {"accuracy": ft.metrics.accuracy()})
    state = ft.init_state(task, init_params, key=0)
    state, losses = train(task, state, (jnp.array(x), jnp.array(y)), epochs=20, batch_size=32)
    print("loss of each epoch:", " ".join(f"{loss:.3f}" for loss in losses))
    metrics = ft.compute_metrics(task, ft.eval_step(task, state, (xv, yv)))
    print(f"validation accuracy {metrics['accuracy']:.4f}")
