"""`fit` side by side with a loop written by hand and with peers: `python -m benchmarks.loop [--rounds N] [--quick]`.

What is timed is training as a user runs it: shuffled batches of 32 gathered from NumPy arrays, clip by global norm
and AdamW, loss and accuracy over the epoch. Everybody's first epochs (compiling, tuning) are left out; what an
epoch's edge costs is in. Peers are run in the way their documentation recommends, and left out where they are not
installed. `--cold` measures instead how long a fresh process takes until its first step is done.
"""

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# torch's workers would otherwise spin after each of its steps, on the cores that the next contender needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fntrain as ft
from benchmarks._measure import interleaved, table

RATE, DECAY, CLIP = 1e-3, 1e-4, 1.0
Arrays = tuple[np.ndarray, np.ndarray]


def digits(rows: int = 1792) -> Arrays:
    """Handwritten digits, 56 whole batches of 32; noise of that shape without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return noise(rows, 64)
    x, y = load_digits(return_X_y=True)
    return (x[:rows] / 16).astype(np.float32), y[:rows].astype(np.int32)


def noise(rows: int, width: int) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, width), np.float32), rng.integers(0, 10, rows).astype(np.int32)


class Problem:
    """An MLP, its data, and how long it is trained: `warm` epochs that do not count, then `epochs` that do."""

    def __init__(self, data: Arrays, hidden: tuple[int, ...], batch_size: int, warm: int, epochs: int):
        self.x, self.y = data
        self.sizes = (self.x.shape[1], *hidden, 10)
        self.batch_size, self.warm, self.epochs = batch_size, warm, epochs
        self.steps_per_epoch = len(self.x) // batch_size

    def params(self) -> dict[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)
        return {
            f"layer{i}": {
                "kernel": (rng.standard_normal((n, m)) * (2 / n) ** 0.5).astype(np.float32),
                "bias": np.zeros(m, np.float32),
            }
            for i, (n, m) in enumerate(itertools.pairwise(self.sizes))
        }

    def batches(self, rng: np.random.Generator) -> Iterator[Arrays]:
        """An epoch, as anyone would write it."""
        order = rng.permutation(len(self.x))
        for i in range(0, len(order), self.batch_size):
            rows = order[i : i + self.batch_size]
            yield self.x[rows], self.y[rows]

    def run(self, epoch: Callable[[], Any]) -> float:
        """Seconds a step of a loop that is given as the function of one epoch, which waits at its end."""
        for _ in range(self.warm):
            epoch()
        start = time.perf_counter()
        for _ in range(self.epochs):
            epoch()
        return (time.perf_counter() - start) / (self.epochs * self.steps_per_epoch)


class Stopwatch:
    """Seconds a step of a loop that calls it at the end of each epoch."""

    def __init__(self, problem: Problem):
        self.problem, self.seen, self.start = problem, 0, 0.0

    def __call__(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.problem.warm:
            self.start = time.perf_counter()
        elif self.seen == self.problem.warm + self.problem.epochs:
            steps = self.problem.epochs * self.problem.steps_per_epoch
            self.seconds = (time.perf_counter() - self.start) / steps


def apply(params: Any, x: Any) -> Any:
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


# By hand


def optax_chain() -> Any:
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY))


def our_chain() -> ft.Transform:
    return ft.chain(ft.clip_by_norm(CLIP), ft.optimizers.adamw(RATE, weight_decay=DECAY))


def by_hand(
    problem: Problem, reads_loss: bool = False, accumulates: bool = True, tx: Any = None
) -> Callable[[], float]:
    """The loop that `fit` is measured by: jitted, donated, sums kept on the device and read once an epoch."""
    tx = optax_chain() if tx is None else tx

    def gradients(params, x, y):
        def loss_fn(params):
            logits = apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

        (loss, logits), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, jnp.sum(jnp.argmax(logits, -1) == y), grads

    def update(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def accumulating(params, opt_state, sums, x, y):
        loss, correct, grads = gradients(params, x, y)
        sums = {"loss": sums["loss"] + loss * len(y), "correct": sums["correct"] + correct}
        return *update(params, opt_state, grads), sums, loss

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def plain(params, opt_state, x, y):
        loss, correct, grads = gradients(params, x, y)
        return *update(params, opt_state, grads), {"loss": loss, "correct": correct}

    params = jax.tree.map(jnp.array, problem.params())
    opt_state = tx.init(params)
    rng = np.random.default_rng(0)

    def epoch():
        nonlocal params, opt_state
        sums = {"loss": jnp.zeros(()), "correct": jnp.zeros((), jnp.int32)}
        for x, y in problem.batches(rng):
            if accumulates:
                params, opt_state, sums, loss = accumulating(params, opt_state, sums, x, y)
                if reads_loss:
                    float(loss)
            else:
                params, opt_state, sums = plain(params, opt_state, x, y)
        return {name: float(value) / len(problem.x) for name, value in sums.items()}

    return lambda: problem.run(epoch)


# fntrain


def make_task(tx: Any = None) -> ft.Task:
    return ft.Task(_loss, our_chain() if tx is None else tx, metrics={"accuracy": ft.metrics.accuracy()})


def _loss(params, batch, ctx):
    logits = apply(params, batch[0])
    return ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])


class Logs:
    """A callback that takes the running loss: without one, nothing would be fetched."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, ctx: Any) -> None:
        self.losses.append(ctx.logs["loss"])


def by_fit(
    problem: Problem, chosen: dict[str, Any] | None = None, logs: bool = False, **options: Any
) -> Callable[[], float]:
    task = make_task()
    state = ft.init_state(task, problem.params())

    def run() -> float:
        stopwatch, reads = Stopwatch(problem), Logs()
        result = ft.fit(
            task,
            state,
            (problem.x, problem.y),
            epochs=problem.warm + problem.epochs,
            batch_size=problem.batch_size,
            callbacks=[stopwatch, reads] if logs else [stopwatch],
            progress=False,
            **options,
        )
        if logs:
            assert len(reads.losses) == int(result.state.step) // options["log_every"]
        if chosen is not None:
            chosen["steps_per_call"] = getattr(result, "steps_per_call", None)
        return stopwatch.seconds

    return run


def by_train_step(problem: Problem, tx: Any = None) -> Callable[[], float]:
    task = make_task(tx)
    state = ft.init_state(task, problem.params())
    rng = np.random.default_rng(0)

    def epoch():
        nonlocal state
        for batch in problem.batches(rng):
            state, metrics = ft.train_step(task, state, batch)
        return {name: float(value) for name, value in ft.compute_metrics(task, metrics).items()}

    return lambda: problem.run(epoch)


def by_run_epoch(problem: Problem) -> Callable[[], float]:
    task = make_task()
    state = ft.init_state(task, problem.params())
    loader = ft.data_loader((problem.x, problem.y), problem.batch_size)

    def epoch():
        nonlocal state
        state, _ = ft.run_epoch(task, state, loader)

    return lambda: problem.run(epoch)


def by_steps(problem: Problem) -> Callable[[], float]:
    task = make_task()
    state = ft.init_state(task, problem.params())
    loader = ft.data_loader((problem.x, problem.y), problem.batch_size)

    def epoch():
        nonlocal state
        for state, metrics in ft.steps(task, state, loader):  # noqa: B007, B020
            pass
        return {name: float(value) for name, value in ft.compute_metrics(task, metrics).items()}

    return lambda: problem.run(epoch)


# Peers


def by_keras(problem: Problem, steps_per_execution: int) -> Callable[[], float]:
    import keras

    if keras.backend.backend() != "jax":
        raise ImportError(f"keras runs on {keras.backend.backend()}, not on jax")
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(n, activation="relu") for n in problem.sizes[1:-1]]
    model = keras.Sequential([keras.Input(problem.sizes[:1]), *hidden, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=DECAY, global_clipnorm=CLIP),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )

    def run() -> float:
        stopwatch = Stopwatch(problem)
        model.fit(
            problem.x,
            problem.y,
            batch_size=problem.batch_size,
            epochs=problem.warm + problem.epochs,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stopwatch)],
            verbose=0,
        )
        return stopwatch.seconds

    return run


def by_nnx(problem: Problem, cached: bool) -> Callable[[], float]:
    from flax import nnx

    class MLP(nnx.Module):
        def __init__(self, sizes, rngs):
            self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(sizes)])

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    @nnx.jit
    def train_step(model, optimizer, metrics, x, y):
        def loss_fn(model):
            logits = model(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

        (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
        metrics.update(loss=loss, logits=logits, labels=y)
        optimizer.update(model, grads)

    model = MLP(problem.sizes, nnx.Rngs(0))
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(RATE, weight_decay=DECAY))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    rng = np.random.default_rng(0)
    if cached:
        step = nnx.cached_partial(train_step, model, optimizer, metrics)
    else:
        step = functools.partial(train_step, model, optimizer, metrics)

    def epoch():
        for x, y in problem.batches(rng):
            step(x, y)
        values = {name: float(value) for name, value in metrics.compute().items()}
        metrics.reset()
        return values

    return lambda: problem.run(epoch)


def torch_model(torch: Any, problem: Problem) -> Any:
    layers: list[Any] = []
    for n, m in itertools.pairwise(problem.sizes):
        layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class TorchBatches:
    """Batches gathered by a permutation: a `DataLoader` that collates example by example is far slower."""

    def __init__(self, torch: Any, problem: Problem):
        self.torch, self.problem = torch, problem
        self.x, self.y = torch.tensor(problem.x), torch.tensor(problem.y, dtype=torch.long)

    def __len__(self) -> int:
        return self.problem.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        for rows in self.torch.randperm(len(self.x)).split(self.problem.batch_size):
            yield self.x[rows], self.y[rows]


def by_torch(problem: Problem) -> Callable[[], float]:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # by far the fastest for a model of this size
    model = torch_model(torch, problem)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    batches = TorchBatches(torch, problem)

    def epoch():
        loss_sum, correct = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for x, y in batches:
            optimizer.zero_grad()
            logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            correct += (logits.argmax(-1) == y).sum()
        return loss_sum.item() / len(batches.x), correct.item() / len(batches.x)

    return lambda: problem.run(epoch)


def by_lightning(problem: Problem) -> Callable[[], float]:
    import lightning
    import torch

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch_model(torch, problem)

        def training_step(self, batch):
            x, y = batch
            logits = self.model(x)
            loss = torch.nn.functional.cross_entropy(logits, y)
            accuracy = (logits.argmax(-1) == y).float().mean()
            values = {"loss": loss, "accuracy": accuracy}
            self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(y))
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), RATE, weight_decay=DECAY)

    class Epochs(lightning.Callback):
        def __init__(self, stopwatch):
            self.stopwatch = stopwatch

        def on_train_epoch_end(self, trainer, module):
            self.stopwatch()

    torch.manual_seed(0)
    torch.set_num_threads(1)  # by far the fastest for a model of this size
    module, batches = Module(), TorchBatches(torch, problem)

    def run() -> float:
        stopwatch = Stopwatch(problem)
        trainer = lightning.Trainer(
            max_epochs=problem.warm + problem.epochs,
            accelerator="cpu",
            gradient_clip_val=CLIP,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Epochs(stopwatch)],
        )
        trainer.fit(module, batches)
        return stopwatch.seconds

    return run


# Tables


def goal_rows(seconds: dict[str, float], goals: list[tuple[str, str, float]]) -> list[list[str]]:
    rows = []
    for one, other, goal in goals:
        if one in seconds and other in seconds:
            ratio = seconds[one] / seconds[other]
            rows.append(
                [f"{one} / {other}", f"{ratio:.3f}", f"≤ {goal}", "met" if ratio <= goal else "not met"]
            )
    return rows


def available(makers: dict[str, Callable[[], Callable[[], float]]]) -> dict[str, Callable[[], float]]:
    """The contenders whose packages are installed; says which are left out."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except (ImportError, AttributeError) as error:
            print(f"left out: {name} ({error})")
    return found


def show(seconds: dict[str, float], base: str, goals: list[tuple[str, str, float]]) -> None:
    rows = [[name, f"{s * 1e6:.1f}", f"{s / seconds[base]:.3f}"] for name, s in seconds.items()]
    print("\n" + table(rows, ["loop", "µs a step", f"ratio to {base}"]) + "\n")
    print(table(goal_rows(seconds, goals), ["ratio", "measured", "goal", ""]) + "\n", flush=True)


def small_model(rounds: int, quick: bool) -> None:
    problem = Problem(digits(), (128,), 32, warm=4, epochs=8 if quick else 20)
    chosen: dict[str, Any] = {}
    makers: dict[str, Any] = {
        "by hand": lambda: by_hand(problem),
        "by hand, loss read each step": lambda: by_hand(problem, reads_loss=True),
        "by hand, nothing accumulated": lambda: by_hand(problem, accumulates=False),
        "by hand, our transforms": lambda: by_hand(problem, accumulates=False, tx=our_chain()),
        "fit": lambda: by_fit(problem, chosen),
        "fit, 1 step a call": lambda: by_fit(problem, steps_per_call=1),
        "fit, 8 steps a call": lambda: by_fit(problem, steps_per_call=8),
        "fit, 28 steps a call": lambda: by_fit(problem, steps_per_call=28),
        "fit, log_every=1": lambda: by_fit(problem, logs=True, log_every=1),
        "fit, prefetch=2": lambda: by_fit(problem, prefetch=2),
        "train_step": lambda: by_train_step(problem),
        "train_step, optax's transforms": lambda: by_train_step(problem, optax_chain()),
        "run_epoch": lambda: ft.run_epoch and by_run_epoch(problem),
        "steps": lambda: ft.steps and by_steps(problem),
    }
    if not quick:
        makers |= {
            "Keras, 1 step per execution": lambda: by_keras(problem, 1),
            "Keras, 8 steps per execution": lambda: by_keras(problem, 8),
            "Keras, 28 steps per execution": lambda: by_keras(problem, 28),
            "Keras, 56 steps per execution": lambda: by_keras(problem, 56),
            "nnx.jit": lambda: by_nnx(problem, cached=False),
            "nnx.cached_partial": lambda: by_nnx(problem, cached=True),
            "torch eager": lambda: by_torch(problem),
            "Lightning": lambda: by_lightning(problem),
        }
    print("## Digits, MLP 64-128-10, batch 32\n")
    seconds = interleaved(available(makers), rounds=rounds, warmup=1, timed=True)
    keras = {name: s for name, s in seconds.items() if name.startswith("Keras")}
    if keras:
        seconds["Keras at its best"] = min(keras.values())
    goals = [
        ("fit", "by hand", 0.5),
        ("fit", "Keras, 1 step per execution", 0.3),
        ("fit", "Keras at its best", 0.5),
        ("fit", "nnx.jit", 0.08),
        ("fit", "Lightning", 0.04),
        ("fit, log_every=1", "fit", 1.1),
        ("train_step", "by hand, our transforms", 1.15),
        ("train_step, optax's transforms", "by hand, nothing accumulated", 1.15),
        ("train_step", "by hand, nothing accumulated", 1.25),
    ]
    if chosen.get("steps_per_call"):
        print(f"fit took {chosen['steps_per_call']} steps a call")
    show(seconds, "by hand", goals)


def large_model(rounds: int) -> None:
    problem = Problem(noise(512 * 20, 512), (1024, 1024), 512, warm=2, epochs=2)
    print("## Noise, MLP 512-1024-1024-10, batch 512: about 20 ms a step\n")
    makers: dict[str, Any] = {
        "by hand": lambda: by_hand(problem),
        "fit": lambda: by_fit(problem),
        "fit, 1 step a call": lambda: by_fit(problem, steps_per_call=1),
    }
    seconds = interleaved(available(makers), rounds=rounds, warmup=1, timed=True)
    show(seconds, "by hand", [("fit", "by hand", 1.01)])


# From the start of a process to the end of its first step

COLD = {
    "by hand": """
import numpy as np, jax, jax.numpy as jnp, optax
rng = np.random.default_rng(0)
x, y = rng.standard_normal((1792, 64), np.float32), rng.integers(0, 10, 1792).astype(np.int32)
normal = lambda *shape: jnp.asarray((rng.standard_normal(shape) * 0.1).astype(np.float32))
params = {"w": normal(64, 128), "b": jnp.zeros(128), "v": normal(128, 10), "c": jnp.zeros(10)}
tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
def loss_fn(p, x, y):
    logits = jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] + p["c"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), jnp.mean(jnp.argmax(logits, -1) == y)
@jax.jit
def step(params, opt_state, x, y):
    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, x, y)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, accuracy
rows = rng.permutation(1792)[:32]
jax.block_until_ready(step(params, tx.init(params), x[rows], y[rows]))
done()
""",
    "fit": """
import numpy as np, jax, fntrain as ft
rng = np.random.default_rng(0)
x, y = rng.standard_normal((1792, 64), np.float32), rng.integers(0, 10, 1792).astype(np.int32)
normal = lambda *shape: (rng.standard_normal(shape) * 0.1).astype(np.float32)
params = {"w": normal(64, 128), "b": np.zeros(128, np.float32), "v": normal(128, 10), "c": np.zeros(10, np.float32)}
def loss_fn(p, batch, ctx):
    logits = jax.nn.relu(batch[0] @ p["w"] + p["b"]) @ p["v"] + p["c"]
    return ft.losses.cross_entropy(logits, batch[1]).with_outputs(logits=logits, labels=batch[1])
tx = ft.chain(ft.clip_by_norm(1.0), ft.optimizers.adamw(1e-3))
task = ft.Task(loss_fn, tx, metrics={"accuracy": ft.metrics.accuracy()})
class First:
    def on_step_end(self, ctx):
        jax.block_until_ready(ctx.state)
        done()
ft.fit(task, ft.init_state(task, params), (x, y), epochs=1, callbacks=[First()])
""",
    "Keras": """
import numpy as np, keras
rng = np.random.default_rng(0)
x, y = rng.standard_normal((1792, 64), np.float32), rng.integers(0, 10, 1792).astype(np.int32)
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)])
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3, global_clipnorm=1.0),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
class First(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        done()
model.fit(x, y, batch_size=32, epochs=1, callbacks=[First()])
""",
}
DONE = "import os, sys\ndef done():\n    os.write(3, b'1')\n    os._exit(0)\n"


def cold(rounds: int) -> None:
    print("## From the start of a process to the end of its first step\n")
    contenders = {}
    for name, program in COLD.items():
        if name == "Keras" and importlib.util.find_spec("keras") is None:
            print("left out: Keras (not installed)")
            continue
        contenders[name] = functools.partial(_first_step, program)
    seconds = interleaved(contenders, rounds=rounds, warmup=1, timed=True)
    rows = [[name, f"{s:.2f}", f"{s / seconds['by hand']:.2f}"] for name, s in seconds.items()]
    print(table(rows, ["loop", "seconds", "ratio to by hand"]) + "\n")
    print(table(goal_rows(seconds, [("fit", "Keras", 1.0)]), ["ratio", "measured", "goal", ""]) + "\n")


def _first_step(program: str) -> float:
    read, write = os.pipe()
    start = time.perf_counter()
    # The program says so itself when it is there, so that what its exit costs does not count.
    process = subprocess.Popen(
        [sys.executable, "-c", DONE.replace("write(3", f"write({write}") + program],
        pass_fds=(write,),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    arrived = os.read(read, 1)
    seconds = time.perf_counter() - start
    os.close(read)
    _, errors = process.communicate()
    if not arrived:
        raise RuntimeError(f"the program failed:\n{errors.decode()[-2000:]}")
    return seconds


def versions() -> str:
    out = [f"jax {jax.__version__}", f"optax {optax.__version__}"]
    for name in ("keras", "flax", "torch", "lightning"):
        try:
            out.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            out.append(f"no {name}")
    return ", ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="without peers, with fewer epochs")
    parser.add_argument("--model", choices=["small", "large", "all"], default="all")
    parser.add_argument("--cold", action="store_true", help="measure fresh processes instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, "
        f"{versions()}, medians of {arguments.rounds} interleaved rounds\n"
    )
    if arguments.cold:
        cold(arguments.rounds)
        return
    if arguments.model != "large":
        small_model(arguments.rounds, arguments.quick)
    if arguments.model != "small":
        large_model(arguments.rounds)


if __name__ == "__main__":
    main()
