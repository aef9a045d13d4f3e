"""Metrics side by side with torchmetrics, scikit-learn and plain JAX: `python -m benchmarks.metrics [--rounds N]`.

100 classes in batches of 1,024, as microseconds an example; an exact area over a million scores; and what accuracy
adds to a training step of the digits model. torchmetrics is optional: without it, its rows are missing and the table
says so.
"""

import argparse
import datetime
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, roc_auc_score

import fntrain as ft
from benchmarks._measure import interleaved, table
from fntrain import scores

CLASSES, BATCH, MILLION = 100, 1024, 1_000_000


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, BATCH)
    logits = rng.normal(size=(BATCH, CLASSES)) + 3 * (labels[:, None] == np.arange(CLASSES))
    return logits.astype(np.float32), labels


class Updates:
    """Many updates of one accumulator, which is donated, and one wait at the end."""

    def __init__(self, empty: Callable[[], Any], update: Callable[..., Any], count: int = 20):
        logits, labels = batch()
        self.outputs = jax.device_put({"logits": logits, "labels": labels})
        self.update = jax.jit(update, donate_argnums=0)
        self.acc = empty()
        self.count = count

    def __call__(self) -> None:
        for _ in range(self.count):
            self.acc = self.update(self.acc, self.outputs)
        jax.block_until_ready(self.acc)


def ours(metric: ft.metrics.Metric) -> Updates:
    return Updates(metric.empty, metric.update)


def plain_matrix(acc: jax.Array, outputs: dict[str, jax.Array]) -> jax.Array:
    """The least that a confusion matrix can cost: an argmax and a scatter, in int32 that wraps."""
    guess = jnp.argmax(outputs["logits"], axis=-1)
    return acc.at[outputs["labels"], guess].add(1)


class Torch:
    """torchmetrics, one update a call."""

    def __init__(self, metric: Any, count: int = 20):
        import torch

        logits, labels = batch()
        self.logits, self.labels = torch.tensor(logits), torch.tensor(labels)
        self.metric, self.count = metric, count

    def __call__(self) -> None:
        for _ in range(self.count):
            self.metric.update(self.logits, self.labels)


def streaming(torchmetrics: Any, rounds: int) -> list[list[str]]:
    """Microseconds an example of one update."""
    c = CLASSES
    three = dict(
        accuracy=ft.metrics.accuracy(), f1=ft.metrics.f1(c), confusion=ft.metrics.confusion_matrix(c)
    )
    contenders: dict[str, Any] = {
        **{f"fntrain {name}": ours(metric) for name, metric in three.items()},
        "fntrain accuracy + f1 + confusion": ours(ft.metrics.collect(**three)),
        "fntrain roc_auc, 1024 bins": ours(ft.metrics.roc_auc(c)),
        "plain JAX confusion": Updates(lambda: jnp.zeros((c, c), jnp.int32), plain_matrix),
    }
    if torchmetrics is not None:
        of = torchmetrics.classification
        contenders |= {
            "torchmetrics accuracy": Torch(of.MulticlassAccuracy(c, average="micro")),
            "torchmetrics f1": Torch(of.MulticlassF1Score(c)),
            "torchmetrics confusion": Torch(of.MulticlassConfusionMatrix(c)),
            "torchmetrics collection of the three": Torch(
                torchmetrics.MetricCollection(
                    [
                        of.MulticlassAccuracy(c, average="micro"),
                        of.MulticlassF1Score(c),
                        of.MulticlassConfusionMatrix(c),
                    ]
                )
            ),
        }
    medians = {
        name: seconds / contenders[name].count
        for name, seconds in interleaved(contenders, rounds=rounds).items()
    }
    if torchmetrics is not None:
        parts = ("accuracy", "f1", "confusion")
        medians["torchmetrics accuracy + f1 + confusion"] = sum(medians[f"torchmetrics {p}"] for p in parts)
        slow = Torch(of.MulticlassAUROC(c, thresholds=200), count=1)
        medians["torchmetrics AUROC, 200 thresholds"] = interleaved({"": slow}, rounds=3, warmup=1)[""]
    logits, labels = batch()
    guess = logits.argmax(1)
    medians |= interleaved(
        {
            "scikit-learn confusion": lambda: confusion_matrix(labels, guess),
            "scikit-learn f1": lambda: f1_score(labels, guess, average="macro"),
        },
        rounds=rounds,
    )
    peers = {"three": "torchmetrics accuracy + f1 + confusion", "auc": "torchmetrics AUROC, 200 thresholds"}
    against = {
        "fntrain accuracy + f1 + confusion": (peers["three"], 0.2),
        "fntrain roc_auc, 1024 bins": (peers["auc"], 0.001),
    }
    rows = []
    for name, seconds in medians.items():
        ratio, goal = "", ""
        if name in against and against[name][0] in medians:
            ratio, goal = f"{seconds / medians[against[name][0]]:.5f}", f"≤ {against[name][1]}"
        rows.append([name, f"{seconds / BATCH * 1e6:.3f}", ratio, goal])
    return rows


def errors(torchmetrics: Any) -> list[list[str]]:
    """How far off the streamed areas are, over 20 batches, and what they say of it themselves."""
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.arange(CLASSES), rng.integers(0, CLASSES, 20 * BATCH - CLASSES)])
    logits = (rng.normal(size=(len(labels), CLASSES)) + 3 * (labels[:, None] == np.arange(CLASSES))).astype(
        np.float32
    )
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    truth = {
        "auc": roc_auc_score(labels, p, multi_class="ovr"),
        "ap": average_precision_score(labels, p, average="macro"),
    }
    rows = []
    for name, metric in (
        ("auc", ft.metrics.roc_auc(CLASSES)),
        ("ap", ft.metrics.mean_average_precision(CLASSES)),
    ):
        acc = jax.jit(metric.update)(metric.empty(), {"logits": logits, "labels": labels})
        got = metric.compute(acc)
        rows.append(
            [f"fntrain {name}", f"{abs(float(got.value) - truth[name]):.1e}", f"{float(got.bound):.1e}"]
        )
    if torchmetrics is not None:
        import torch

        peer = torchmetrics.classification.MulticlassAUROC(CLASSES, thresholds=200)
        for part in np.split(np.arange(len(labels)), 20):
            peer.update(torch.tensor(logits[part]), torch.tensor(labels[part]))
        rows.append(
            ["torchmetrics AUROC, 200 thresholds", f"{abs(float(peer.compute()) - truth['auc']):.1e}", ""]
        )
    return rows


def exact(torchmetrics: Any, rounds: int) -> list[list[str]]:
    """Milliseconds for an exact area over a million float32 scores."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, MILLION)
    score = (rng.normal(size=MILLION) + labels).astype(np.float32)
    metric = ft.metrics.roc_auc(exact=True, capacity=MILLION)
    acc = jax.jit(metric.update)(metric.empty(), {"logits": score, "labels": labels})
    compute = jax.jit(metric.compute)
    contenders: dict[str, Callable[[], Any]] = {
        "scikit-learn roc_auc_score": lambda: roc_auc_score(labels, score),
        "fntrain scores.roc_auc": lambda: scores.roc_auc(labels, score),
        "fntrain metrics.roc_auc(exact=True), compute": lambda: jax.block_until_ready(metric.compute(acc)),
        "fntrain metrics.roc_auc(exact=True), compute under jit": lambda: jax.block_until_ready(compute(acc)),
    }
    if torchmetrics is not None:
        import torch

        x, y = torch.tensor(score), torch.tensor(labels)
        area = torchmetrics.functional.classification.binary_auroc
        contenders["torchmetrics binary_auroc"] = lambda: area(x, y)
    medians = interleaved(contenders, rounds=rounds, warmup=1)
    base = medians["scikit-learn roc_auc_score"]
    return [
        [name, f"{seconds * 1e3:.0f}", f"{seconds / base:.3f}", "≤ 1" if "fntrain" in name else ""]
        for name, seconds in medians.items()
    ]


class Steps:
    """Training steps of the digits model, with these metrics."""

    def __init__(self, metrics: dict[str, Any], count: int = 100):
        rng = np.random.default_rng(0)
        self.batch = jax.device_put(
            (rng.uniform(size=(32, 64)).astype(np.float32), rng.integers(0, 10, 32).astype(np.int32))
        )
        tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3))
        self.task = ft.Task(digits_loss, tx, metrics)
        self.state = ft.init_state(self.task, digits_params, key=0)
        self.count = count

    def __call__(self) -> None:
        for _ in range(self.count):
            self.state, metrics = ft.train_step(self.task, self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def digits_params(key: jax.Array) -> dict[str, jax.Array]:
    a, b = jax.random.split(key)
    he = jax.nn.initializers.he_normal()
    return {"w1": he(a, (64, 128)), "b1": jnp.zeros(128), "w2": he(b, (128, 10)), "b2": jnp.zeros(10)}


def digits_loss(params: Any, batch: Any, ctx: Any) -> ft.Loss:
    image, label = batch
    x = jax.nn.relu(image @ params["w1"] + params["b1"])
    logits = x @ params["w2"] + params["b2"]
    return ft.losses.cross_entropy(logits, label).with_outputs(logits=logits, labels=label)


def steps(rounds: int) -> list[list[str]]:
    """Microseconds a step, by what it reports."""
    contenders = {
        "no metrics": Steps({}),
        "accuracy": Steps({"accuracy": ft.metrics.accuracy()}),
        "accuracy, f1, confusion": Steps(
            {"a": ft.metrics.accuracy(), "f1": ft.metrics.f1(10), "c": ft.metrics.confusion_matrix(10)}
        ),
    }
    medians = interleaved(contenders, rounds=3 * rounds)
    base = medians["no metrics"]
    return [
        [name, f"{seconds / 100 * 1e6:.1f}", f"{seconds / base:.3f}", "≤ 1.03" if name == "accuracy" else ""]
        for name, seconds in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    try:
        import torchmetrics
    except ImportError:
        torchmetrics = None
    version = (
        "not installed: its rows and ratios are missing" if torchmetrics is None else torchmetrics.__version__
    )
    print(
        f"{datetime.date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"scikit-learn {sklearn.__version__}, torchmetrics {version}, medians of {rounds} interleaved rounds\n"
    )
    header = ["update", "µs an example", "ratio to torchmetrics", "goal"]
    print(table(streaming(torchmetrics, rounds), header), "\n")
    print(table(errors(torchmetrics), ["streamed area, 100 classes", "error", "its own bound"]), "\n")
    print(
        table(
            exact(torchmetrics, max(rounds // 3, 3)), ["10⁶ scores", "ms", "ratio to scikit-learn", "goal"]
        ),
        "\n",
    )
    print(table(steps(rounds), ["train_step of the digits model with", "µs a step", "ratio", "goal"]))


if __name__ == "__main__":
    main()
