"""Handwritten digits with `fit`: a model of plain functions, a chain of transforms, two metrics.

Run it: python examples/digits.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fntrain as ft


def init_params(key):
    first, second = jax.random.split(key)
    he = jax.nn.initializers.he_normal()
    return {
        "hidden": {"kernel": he(first, (64, 128)), "bias": jnp.zeros(128)},
        "output": {"kernel": he(second, (128, 10)), "bias": jnp.zeros(10)},
    }


def apply(params, image, dropout_key=None):
    x = jax.nn.relu(image @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    if dropout_key is not None:
        x = jnp.where(jax.random.bernoulli(dropout_key, 0.8, x.shape), x / 0.8, 0)
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def loss_fn(params, batch, ctx):
    image, label = batch
    logits = apply(params, image, ctx.stream("dropout") if ctx.train else None)
    return ft.losses.cross_entropy(logits, label).with_outputs(logits=logits, labels=label)


def main():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)

    rate = ft.schedules.warmup(ft.schedules.cosine(3e-3, 800), 100)  # 20 epochs of 45 steps
    tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(rate, weight_decay=1e-2, mask="kernel"))
    read = {"accuracy": ft.metrics.accuracy(), "confusion": ft.metrics.confusion_matrix(10)}
    task = ft.Task(loss_fn, tx, read)

    state = ft.init_state(task, init_params, key=0)
    state, _ = ft.fit(task, state, (x, y), epochs=20, batch_size=32, validation_data=(xv, yv))
    result = ft.evaluate(task, state, (xv, yv))
    print(f"validation accuracy {result['accuracy']:.4f}")
    print(result["confusion"])


if __name__ == "__main__":
    main()
