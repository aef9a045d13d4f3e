"""The demo: a small network learns to read handwritten digits.

A whole training program in one file, from the public parts of the library alone: data, a model of plain
functions, a chain of transforms, metrics, and one call of `fit`. The same network is there as a module of Flax NNX,
Flax Linen and Equinox: it starts from the same numbers, and comes to the same.
"""

import dataclasses
import functools
import itertools
import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import losses, metrics, models, schedules, transforms
from ._core import check
from ._core.errors import ConfigError
from ._core.files import write_text
from ._core.typing import Batch, Params
from .losses.loss import Loss
from .run.fit import FitResult, fit
from .run.signals import Signals
from .step.state import TrainState, init_state
from .step.task import Context, Task
from .transforms import MultiSteps, add_weight_decay, chain, clip_by_norm, nesterov

LAYERS = (64, 128, 64, 10)
"""Units of each layer: the pixels of a scan, two hidden layers, the ten digits."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What makes one run of the demo differ from another.

    Args:
      epochs: the length of the schedule; a run that goes on longer holds its last rate.
      batch_size: scans in a batch.
      seed: of the initial parameters and the order of the data.
      accumulate: batches to an update.
      model: what the network is made of, one of MODELS.
    """

    epochs: int = 30
    batch_size: int = 32
    seed: int = 0
    accumulate: int = 1
    model: str = "plain"


def load() -> tuple[Batch, Batch]:
    """scikit-learn's handwritten digits, split into 1,437 to train on and 360 to validate on.

    The split is stratified, so that each digit has its share of both, and always the same.

    Returns:
      Two batches, `{"image": float32 [N, 64] within 0..1, "label": int32 [N]}`.

    Raises:
      ConfigError: if scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ConfigError(
            'the digits come with scikit-learn, which is not installed: `pip install "fntrain[examples]"`'
        ) from error
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype(np.float32), y.astype(np.int32)
    x, xv, y, yv = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    return {"image": x, "label": y}, {"image": xv, "label": yv}


def init_params(key: jax.Array) -> Params:
    """A kernel and a bias for each layer."""
    he = jax.nn.initializers.he_normal()
    keys = jax.random.split(key, len(LAYERS) - 1)
    layers = [
        {"kernel": he(k, (n, m), jnp.float32), "bias": jnp.zeros(m, jnp.float32)}
        for k, n, m in zip(keys, LAYERS, LAYERS[1:])
    ]
    return {"layers": layers}


def apply(params: Params, image: jax.Array) -> jax.Array:
    """Logits `[N, 10]` of images `[N, 64]`."""
    *hidden, last = params["layers"]
    x = image
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ last["kernel"] + last["bias"][None]


def loss_fn(params: Params, batch: Batch, ctx: Context) -> Loss:
    """Cross-entropy, one value a scan, with what the metrics read."""
    del ctx  # nothing here is random, or different in training
    return _loss(apply(params, batch["image"]), batch)


def _loss(logits: jax.Array, batch: Batch) -> Loss:
    return losses.cross_entropy(logits, batch["label"]).with_outputs(logits=logits, labels=batch["label"])


class Network(NamedTuple):
    """The network in one of its forms.

    Attributes:
      init: `key -> params`: the numbers of `init_params`, where the form has them.
      loss_fn: as above.
      kernels: a regex of the paths that are decayed.
    """

    init: Callable[[jax.Array], Params]
    loss_fn: Callable[[Params, Batch, Context], Loss]
    kernels: str = "kernel"


def _nnx() -> tuple[models.Model, Callable[[list[Params]], Params]]:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(LAYERS)])

        def __call__(self, x: jax.Array) -> jax.Array:
            *hidden, last = self.layers
            for layer in hidden:
                x = jax.nn.relu(layer(x))
            return last(x)

    return models.nnx(Net), lambda layers: {"layers": dict(enumerate(layers))}


def _linen() -> tuple[models.Model, Callable[[list[Params]], Params]]:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for i, units in enumerate(LAYERS[1:]):
                x = linen.Dense(units, name=f"layers_{i}")(jax.nn.relu(x) if i else x)
            return x

    model = models.linen(Net(), jax.ShapeDtypeStruct((1, LAYERS[0]), jnp.float32))
    return model, lambda layers: {f"layers_{i}": layer for i, layer in enumerate(layers)}


def _equinox() -> tuple[models.Model, Callable[[list[Params]], Params]]:
    import equinox as eqx

    def net(key: jax.Array) -> Any:
        layers = [eqx.nn.Linear(n, m, key=key) for n, m in itertools.pairwise(LAYERS)]
        relu = eqx.nn.Lambda(jax.nn.relu)
        return eqx.nn.Sequential([layers[0], *(x for layer in layers[1:] for x in (relu, layer))])

    def placed(layers: list[Params]) -> Params:  # a matrix stands the other way round there
        each = ({"weight": layer["kernel"].T, "bias": layer["bias"]} for layer in layers)
        return {"layers": {2 * i: layer for i, layer in enumerate(each)}}

    return models.equinox(net), placed


_MADE = {"nnx": _nnx, "linen": _linen, "equinox": _equinox}
MODELS = ("plain", *_MADE)
"""What the network can be made of."""


@functools.cache
def network(name: str) -> Network:
    """The network by the name of what it is made of.

    Raises:
      ConfigError: if there is none of that name, or its library is missing.
    """
    check.one_of("model", name, MODELS)
    if name == "plain":
        return Network(init_params, loss_fn)
    try:
        model, placed = _MADE[name]()
    except ImportError as error:
        raise ConfigError(
            f'--model {name}: {error.name} is not installed: `pip install "fntrain[models]"`'
        ) from error

    def over_model(params: Params, batch: Batch, ctx: Context) -> Loss:
        return _loss(model.apply(params, batch["image"], ctx=ctx)[0], batch)

    return Network(
        lambda key: placed(init_params(key)["layers"]),
        over_model,
        "weight" if name == "equinox" else "kernel",
    )


def make_task(options: Options, examples: int) -> Task:
    """The task of a run over `examples` scans an epoch; equal options make equal tasks."""
    updates = -(-examples // options.batch_size) * options.epochs // options.accumulate
    rising = max(1, updates // 10)
    rate = schedules.warmup(schedules.cosine(0.1, max(1, updates - rising), end=0.001), rising, start=0.01)
    made_of = network(options.model)
    tx = chain(
        clip_by_norm(1.0),
        nesterov(0.9),
        add_weight_decay(0.01, mask=made_of.kernels),
        transforms.scale_by_learning_rate(rate),
    )
    if options.accumulate > 1:
        tx = MultiSteps(tx, options.accumulate)
    read = {"accuracy": metrics.accuracy(), "confusion_matrix": metrics.confusion_matrix(LAYERS[-1])}
    return Task(made_of.loss_fn, tx, read)


class Prepared(NamedTuple):
    """What a run starts from."""

    task: Task
    state: TrainState
    data: Batch
    validation: Batch


def prepare(options: Options) -> Prepared:
    """Load the data and make the task and its first state.

    Raises:
      ConfigError: if scikit-learn is missing, or the library that the network is to be made of.
    """
    # An interrupt waits until this is done: one that breaks into a compilation can crash the interpreter.
    with Signals() as signals:
        data, validation = load()
        task = make_task(options, len(data["label"]))
        state = init_state(task, network(options.model).init, key=options.seed)
    if signals.received is not None:
        signal.raise_signal(signals.received)
    return Prepared(task, state, data, validation)


def train(
    options: Options,
    prepared: Prepared,
    run_dir: Path,
    *,
    epochs: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train the network, or go on with it.

    Args:
      options: of the run; on a resume, those it was started with (`saved_options`).
      prepared: what `prepare(options)` returned.
      run_dir: where the run is kept.
      epochs: epochs in all, where they differ from those of the schedule.
      resume: go on with the run in `run_dir`.
      progress: show progress.

    Returns:
      What `fit` returns.

    Raises:
      ConfigError: if `run_dir` holds another run.
    """
    return fit(
        prepared.task,
        prepared.state,
        prepared.data,
        epochs=options.epochs if epochs is None else epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        validation_data=prepared.validation,
        callbacks=[_KeepOptions(options)],
        run_dir=run_dir,
        resume=resume,
        log_every=10,  # an epoch has some 45 steps
        progress=progress,
    )


class _KeepOptions:
    """Adds the options to the run's `config.json`, once `fit` has written it."""

    def __init__(self, options: Options):
        self.options = options

    def on_fit_begin(self, ctx: Any) -> None:
        path = ctx.run_dir / "config.json"
        config = {**json.loads(path.read_text()), "demo": dataclasses.asdict(self.options)}
        write_text(path, json.dumps(config, indent=2) + "\n")


def saved_options(config: Mapping[str, Any]) -> Options | None:
    """The options a run was started with, from its `config.json`; None if it is no run of the demo."""
    saved = config.get("demo")
    return None if saved is None else Options(**saved)
