"""A class that is one example in twenty: class weights, the area under the curve, and a confusion matrix.

Run it: python examples/imbalanced.py
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
    return {"w1": he(first, (64, 32)), "b1": jnp.zeros(32), "w2": he(second, (32, 2)), "b2": jnp.zeros(2)}


def apply(params, x):
    return jax.nn.relu(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def main():
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    keep = (y != 8) | (rng.random(len(y)) < 0.5)  # half of the eights are gone: one in twenty is left
    x, y = (x[keep] / 16).astype(np.float32), (y[keep] == 8).astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)

    model = ft.models.plain(init_params, apply)
    task = ft.supervised(
        model,
        metrics=["accuracy", "balanced_accuracy", "f1", "roc_auc", "confusion_matrix"],
        num_classes=2,
        learning_rate=2e-3,
        class_weights="balanced",
        class_counts=np.bincount(y),
    )
    state = ft.init_state(task, model.init, key=0)
    best = ft.callbacks.EarlyStopping("val_roc_auc", patience=5, restore_best=True)
    state, _ = ft.fit(task, state, (x, y), epochs=40, validation_data=(xv, yv), callbacks=[best])

    result = ft.evaluate(task, state, (xv, yv))
    print(f"area under the curve {result['roc_auc']:.4f}, balanced {result['balanced_accuracy']:.4f}")
    print(result["confusion_matrix"])
    print(f"validation accuracy {result['accuracy']:.4f}")


if __name__ == "__main__":
    main()
