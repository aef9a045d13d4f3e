"""Rules about the optimizer: rates, clips, averages, and numbers too coarse for the updates."""

import math
import re
import statistics
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import tree
from ...transforms.stages import rescales, walk
from .evidence import Evidence
from .picture import picture
from .rule import Seen, rule


@rule(above=1.5)
def rate_above_curvature(evidence: Evidence) -> Seen | str:
    """A rate beyond what gradient descent bears in the steepest direction; 1 is where training settles by itself."""
    rates, task, state = evidence.finite("learning_rate"), evidence.task, evidence.state
    if few := evidence.few(1, "learning_rate"):
        return few
    if task is None or state is None or evidence.batch is None:
        return evidence.lacks
    decay = _momentum(task.transform, tree.split(state.params)[0])
    if decay is None:
        return (
            "the bound is that of gradient descent, with or without momentum, and this optimizer is another"
        )
    found = evidence.curvature
    assert found is not None
    number = rates[-1] * found.sharpness / (2 * (1 + decay))
    return Seen(
        number,
        f"the rate {rates[-1]:.3g} is {number:.3g} times the largest that the sharpness {found.sharpness:.3g} bears",
        f"Lower it to {(1 + decay) * found.largest_rate:.3g} or less, or warm it up",
        lambda: picture(
            evidence,
            "learning_rate",
            ["learning_rate"],
            {"1.5 × what the sharpness bears now": 1.5 * (1 + decay) * found.largest_rate},
        ),
    )


def _momentum(tx: Any, trained: Any) -> float | None:
    """The decay of the momentum of a plain gradient descent; None of anything that takes another direction."""
    decay = 0.0
    for stage in walk(tx, trained):
        name = stage.tx.call.name if stage.tx.call is not None else ""
        if name == "momentum":
            value = stage.tx.call.arguments["decay"]  # type: ignore[union-attr]
            if not isinstance(value, int | float):
                return None
            decay = float(value)
        elif not stage.tx.stages and rescales(stage.tx, stage.params) is not False:
            return None
    return decay


LARGE, SMALL = 0.1, 1e-6  # of an update, by its weights


@rule(above=LARGE)
def updates_large(evidence: Evidence) -> Seen | str:
    """Updates a tenth of what they change: weights are overwritten, and not trained."""
    return _update_ratio(evidence, "Lower the rate: about 1e-3 is usual", LARGE)


@rule(below=SMALL)
def updates_small(evidence: Evidence) -> Seen | str:
    """Updates so small that nothing moves."""
    return _update_ratio(evidence, "Raise the rate: about 1e-3 is usual", SMALL)


def _update_ratio(evidence: Evidence, advice: str, level: float) -> Seen | str:
    """The median over leaves and the later half of the epochs, where `record_updates` told."""
    rows = evidence.rows[len(evidence.rows) // 2 :]
    found = [x for row in rows for k, x in row.items() if k.startswith("update_ratio/")]
    found = [x for x in found if isinstance(x, float) and math.isfinite(x)]
    if not found:
        return "no row has an `update_ratio`: put `transforms.record_updates()` at the chain's end"
    ratio, names = statistics.median(found), dict.fromkeys(k for row in evidence.rows for k in row)
    leaves = {k: k.removeprefix("update_ratio/") for k in names if k.startswith("update_ratio/")}
    return Seen(
        ratio,
        f"an update is {ratio:.2g} times its weights",
        advice,
        lambda: picture(evidence, "update / weights, a leaf", leaves, {f"threshold {level:g}": level}),
    )


@rule(above=0.5)
def clipped(evidence: Evidence) -> Seen | str:
    """A clip that is no exception, but the rule: it makes the rate."""
    factors = evidence.finite("clip_factor")
    if "clip_factor" not in {name for row in evidence.rows for name in row}:
        return "nothing clips: no row has a `clip_factor`"
    if few := evidence.few(3, "clip_factor"):
        return few
    share = sum(x < 0.5 for x in factors) / len(factors)
    return Seen(
        share,
        f"the gradient is clipped to less than half in {share:.0%} of the rows",
        "Raise `max_norm` to about the usual `grad_norm`, or lower the rate and clip less",
        lambda: picture(evidence, "clip_factor", ["clip_factor"], {"half of the gradient": 0.5}),
    )


@rule(above=1.0)
def no_learning_rate(evidence: Evidence) -> Seen | str:
    """Updates that are added along the gradient, or as large as it is."""
    losses, words = evidence.finite("loss"), evidence.words
    if not words:
        return "nothing says what the optimizer is: give `task=`, or a run with a `run_dir`"
    if few := evidence.few(2, "loss"):
        return few
    descends = None if evidence.task is None else evidence.task.transform.descends
    named = "learning_rate" in words or "optax" in words
    rise = losses[-1] / losses[0] if losses[0] > 0 else 1.0
    return Seen(
        0.0 if named and descends is not False else rise,
        f"the loss rises, to {rise:.3g} times what it was, and no stage of `{words}` has a learning rate",
        "End the chain with `scale_by_learning_rate`, or with an optimizer",
        lambda: picture(evidence, "loss", ["loss"], {"where it began": losses[0]}),
    )


@rule(above=1.0)
def averaging_too_long(evidence: Evidence) -> Seen | str:
    """An average of parameters that still holds those of the start."""
    updates = evidence.column("updates")
    found = re.search(r"\bema\(decay=([\d.]+)([^()]*)\)", evidence.words)
    if not updates or not updates[-1] > 0:
        return "no epoch with an update has ended"
    if not evidence.words:
        return "nothing says what the optimizer is: give `task=`, or a run with a `run_dir`"
    decay = float(found[1]) if found is not None else 0.0
    corrected = found is not None and re.search("debias=True|warmup=", found[2]) is not None
    window = 0.0 if corrected or decay >= 1 else 1 / (1 - decay)
    return Seen(
        window / updates[-1],
        f"the average is over {window:.0f} updates, of {updates[-1]:.0f} in all",
        "Lower `decay`, or give `debias=True` or a `warmup`",
    )


@rule(above=0.5)
def updates_round_away(evidence: Evidence) -> Seen | str:
    """Updates below half a unit in the last place of parameters of few bits: nothing is added."""
    task = evidence.task
    if task is None or evidence.at_hand is None:
        return evidence.lacks
    few_bits = [(path, p) for path, p in evidence.leaves() if jnp.finfo(p.dtype).bits < 32]
    if not few_bits or task.policy.stochastic_rounding:  # type: ignore[union-attr]
        return Seen(0.0, "no update is rounded to few bits", "")
    stepped = evidence.stepped
    assert stepped is not None
    coarse = kept = 0
    after, grads = dict(tree.items(stepped.params)), dict(tree.items(evidence.gradient))
    for path, p in few_bits:
        moved = np.asarray(grads[path], np.float32) != 0
        coarse += int(moved.sum())
        kept += int((moved & (np.asarray(after[path]) == np.asarray(p))).sum())
    share = kept / coarse if coarse else 0.0
    return Seen(
        share,
        f"{share:.0%} of the weights of few bits do not move in a step, though they have a gradient",
        'Keep the parameters in float32 (`policy="bf16"` computes in bfloat16), or round stochastically',
    )


@rule(above=10.0)
def loss_scale_collapsed(evidence: Evidence) -> Seen | str:
    """A loss scale that was halved again and again."""
    scales = evidence.finite("loss_scale")
    if "loss_scale" not in {name for row in evidence.rows for name in row}:
        return "nothing scales the loss: no row has a `loss_scale`"
    if few := evidence.few(2, "loss_scale"):
        return few
    number = math.log2(max(scales) / scales[-1]) if scales[-1] > 0 else math.inf
    return Seen(
        number,
        f"the loss scale was halved {number:.0f} times over, to {scales[-1]:.3g}",
        "Numbers that are not finite are not for want of range: look for them with `tools.find_nonfinite`",
        lambda: picture(
            evidence, "loss_scale", ["loss_scale"], {"a thousandth of its highest": max(scales) / 1024}
        ),
    )
