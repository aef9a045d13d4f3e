"""Handwritten digits with a Flax NNX network: batch norm, dropout, and the module back when it is trained.

Run it: python examples/nnx_cnn.py
"""

import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fntrain as ft


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        x = nnx.max_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        return self.head(self.dropout(x.reshape(x.shape[0], -1)))


def main():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)

    model = ft.models.nnx(CNN)
    task = ft.supervised(model, "cross_entropy", "adamw", ["accuracy"], learning_rate=2e-3, clip_norm=1.0)
    state = ft.init_state(task, model.init, key=0)
    state, _ = ft.fit(task, state, (x, y), epochs=5, validation_data=(xv, yv))

    module = model.module(state)  # a CNN again, in evaluation mode
    accuracy = float((module(xv).argmax(-1) == yv).mean())
    print(f"validation accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
