"""How many updates Muon and SOAP need for the loss that AdamW ends with: `python -m benchmarks.convergence matrices`.

The protocol. The model is that of `examples/gpt.py`, over bytes, at the size it calls tiny; a loss is that of 512
windows held out, in nats a byte. The rate rises over 20 updates and falls linearly to zero at the end of the run: a run
of another length is another run, not a part of a longer one. Each optimizer has the rate that is best for the whole
length, over seeds that are not used again; the grid is powers of two and goes on until the best is inside. AdamW's loss
at the whole length is the target, of each seed its own (the start and the rows are the seed's, the same for all). The
others run at every length of a list, and between two neighbours the loss is taken as linear. Their rate is not tuned
again for the shorter runs, which is to their disadvantage.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import fntrain as ft
from benchmarks._measure import spread, table

SEEDS = (0, 1, 2)
CHOOSING = (100, 101)
WHOLE = 240
LENGTHS = (72, 96, 120, 144, 192, 240)
CHUNK = 24
RISE = 20
ROWS = 16
DECAY = dict(weight_decay=0.1, mask="kernel")
AXES = {"qkv": "brbcc", "out": "brrc"}


def adamw(rate: Any) -> Any:
    """As in the example."""
    return ft.optimizers.adamw(rate, b2=0.95, **DECAY)


def muon(rate: Any) -> Any:
    """Of the layers' matrices. One rate for all, as the updates of both kinds have entries of one size."""
    layers = dict(matrices="layers/.*kernel", scaling="rms", axes=AXES, dtype="float32")
    return ft.optimizers.muon(rate, rate, **layers, **DECAY)


def soap(rate: Any) -> Any:
    """Of the layers' matrices."""
    return ft.by_path({"layers/.*kernel": ft.optimizers.soap(rate, axes=AXES, **DECAY), ".*": adamw(rate)})


OPTIMIZERS = {"AdamW": adamw, "Muon": muon, "SOAP": soap}


def example() -> Any:
    """The module of `examples/gpt.py`."""
    spec = importlib.util.spec_from_file_location("gpt", Path(__file__).parents[1] / "examples" / "gpt.py")
    gpt = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(gpt)  # type: ignore[union-attr]
    return gpt


def runner(
    gpt: Any, text: Any, held_out: Any, make: Callable[[Any], Any]
) -> Callable[[float, int, int], float]:
    """`run(rate, length, seed)`, the loss at the end; rate and length stand in the state, so all are one program."""

    def factory(learning_rate, length):
        def shape(count):
            return jax.numpy.clip(
                jax.numpy.minimum((count + 1) / RISE, (length - count) / (length - RISE)), 0, 1
            )

        return ft.chain(ft.clip_by_norm(1.0), make(learning_rate), optax.scale_by_schedule(shape))

    tx = ft.transforms.with_hyperparams(factory, learning_rate=1e-3, length=float(WHOLE))
    task = ft.Task(gpt.make_task(1e-3).loss_fn, tx)
    start = jax.jit(partial(gpt.init_params, gpt.SIZES["tiny"]))

    def run(rate: float, length: int, seed: int) -> float:
        state = ft.init_state(task, start(jax.random.key(seed)))
        numbers = ft.transforms.set_hyperparams(state.opt_state, learning_rate=rate, length=float(length))
        state = state.replace(opt_state=numbers)
        rows = text[np.random.default_rng(seed).integers(0, len(text), (length, ROWS))]
        for i in range(0, length, CHUNK):
            state, _ = ft.train_steps(task, state, rows[i : i + CHUNK])
        return float(ft.compute_metrics(task, ft.eval_step(task, state, held_out))["loss"])

    return run


def tuned(run: Callable[[float, int, int], float]) -> tuple[int, dict[int, float]]:
    """The power of two whose rate is best, and the mean loss at each that was tried: on both sides it is worse."""
    found: dict[int, float] = {}

    def at(power: int) -> float:
        if power not in found:
            loss = np.mean([run(2.0**power, WHOLE, seed) for seed in CHOOSING])
            found[power] = float(np.nan_to_num(loss, nan=np.inf))
        return found[power]

    best = -7
    while (better := min((best, best - 1, best + 1), key=at)) != best:
        best = better
    return best, found


def needed(losses: np.ndarray, target: float) -> float:
    """Where the losses of the lengths first are down to the target, as a part of the whole; infinite where never."""
    if losses[0] <= target:
        return LENGTHS[0] / WHOLE
    for (a, b), (x, y) in zip(pairwise(LENGTHS), pairwise(losses)):
        if y <= target:
            return (a + (b - a) * (x - target) / (x - y)) / WHOLE
    return float("inf")


def matrices() -> str:
    """Updates to the loss that AdamW has at its end, as a part of its own; the protocol is in `updates.py`."""
    gpt = example()
    text = gpt.text(gpt.SIZES["tiny"].length)
    mask = np.random.default_rng(0).permutation(len(text)) < 512
    text, held_out = text[~mask], text[mask]
    lines, grids = [], []
    target = np.zeros(len(SEEDS))
    for name, make in OPTIMIZERS.items():
        run = runner(gpt, text, held_out, make)
        power, tried = tuned(run)
        grids.append([name, *(f"2^{p}: {x:.3f}" for p, x in sorted(tried.items()))])
        lengths = LENGTHS if name != "AdamW" else (WHOLE,)
        ends = np.array([[run(2.0**power, n, seed) for n in lengths] for seed in SEEDS])
        if name == "AdamW":
            target = ends[:, -1]
        parts = [needed(row, x) for row, x in zip(ends, target)] if name != "AdamW" else [1.0]
        lines.append([name, f"2^{power}", *spread(ends[:, -1], 4), *spread(parts, 3)])
        if name != "AdamW":
            grids.append(
                [f"{name}, by length", *(f"{n}: {x:.3f}" for n, x in zip(lengths, np.median(ends, axis=0)))]
            )
    head = [
        "",
        "best rate",
        f"held-out loss after {WHOLE}",
        "seeds",
        "updates to AdamW's loss, ratio",
        "seeds",
    ]
    tried = "\n".join(f"- {name}: {', '.join(rest)}" for name, *rest in grids)
    return f"{table(lines, head)}\n\nMean losses of the rates tried, and medians of the lengths:\n\n{tried}"
