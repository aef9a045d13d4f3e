"""Handwritten digits with a Flax Linen network, whose batch norm does not see the padding of the last batch.

Run it: python examples/linen_cnn.py
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fntrain as ft


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(16, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.max_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


def main():
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)

    model = ft.models.linen(CNN(), jnp.ones((1, 8, 8, 1)))
    steps = 5 * -(-len(x) // 32)
    task = ft.supervised(model, learning_rate=2e-3, lr_schedule="cosine", warmup=20, steps=steps)
    state = ft.init_state(task, model.init, key=0)
    state, _ = ft.fit(task, state, (x, y), epochs=5, batch_size=32, validation_data=(xv, yv))

    logits = ft.predict(task, state, xv)
    print(f"validation accuracy {(logits.argmax(-1) == yv).mean():.4f}")


if __name__ == "__main__":
    main()
