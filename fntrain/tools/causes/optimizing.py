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
from .rule import Seen, rule


@rule(above=1.5)
def rate_above_curvature(evidence: Evidence) -> Seen | None:
    """A rate beyond what gradient descent bears in the steepest direction; 1 is where training settles by itself."""
    rates, task, state = evidence.finite("learning_rate"), evidence.task, evidence.state
    if not rates or evidence.at_hand is None or task is None or state is None:
        return None
    trained = tree.split(state.params)[0]
    found, decay = evidence.curvature, _momentum(task.transform, trained)
    if found is None or decay is None:
        return None
    number = rates[-1] * found.sharpness / (2 * (1 + decay))
    return Seen(
        number,
        f"the rate {rates[-1]:.3g} is {number:.3g} times the largest that the sharpness {found.sharpness:.3g} bears",
        f"Lower it to {(1 + decay) * found.largest_rate:.3g} or less, or warm it up",
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


@rule(above=0.1)
def updates_large(evidence: Evidence) -> Seen | None:
    """Updates a tenth of what they change: weights are overwritten, and not trained."""
    ratio = _update_ratio(evidence)
    if ratio is None:
        return None
    return Seen(ratio, f"an update is {ratio:.2g} times its weights", "Lower the rate: about 1e-3 is usual")


@rule(below=1e-6)
def updates_small(evidence: Evidence) -> Seen | None:
    """Updates so small that nothing moves."""
    ratio = _update_ratio(evidence)
    if ratio is None:
        return None
    return Seen(ratio, f"an update is {ratio:.2g} times its weights", "Raise the rate: about 1e-3 is usual")


def _update_ratio(evidence: Evidence) -> float | None:
    """The median over leaves and the later half of the epochs, where `record_updates` told."""
    rows = evidence.rows[len(evidence.rows) // 2 :]
    found = [x for row in rows for k, x in row.items() if k.startswith("update_ratio/")]
    found = [x for x in found if isinstance(x, float) and math.isfinite(x)]
    return statistics.median(found) if found else None


@rule(above=0.5)
def clipped(evidence: Evidence) -> Seen | None:
    """A clip that is no exception, but the rule: it makes the rate."""
    factors = evidence.finite("clip_factor")
    if len(factors) < 3:
        return None
    share = sum(x < 0.5 for x in factors) / len(factors)
    return Seen(
        share,
        f"the gradient is clipped to less than half in {share:.0%} of the rows",
        "Raise `max_norm` to about the usual `grad_norm`, or lower the rate and clip less",
    )


@rule(above=1.0)
def no_learning_rate(evidence: Evidence) -> Seen | None:
    """Updates that are added along the gradient, or as large as it is."""
    losses, words = evidence.finite("loss"), evidence.words
    if not words or len(losses) < 2:
        return None
    descends = None if evidence.task is None else evidence.task.transform.descends
    named = "learning_rate" in words or "optax" in words
    rise = losses[-1] / losses[0] if losses[0] > 0 else 1.0
    return Seen(
        0.0 if named and descends is not False else rise,
        f"the loss rises, to {rise:.3g} times what it was, and no stage of `{words}` has a learning rate",
        "End the chain with `scale_by_learning_rate`, or with an optimizer",
    )


@rule(above=1.0)
def averaging_too_long(evidence: Evidence) -> Seen | None:
    """An average of parameters that still holds those of the start."""
    updates = evidence.column("updates")
    found = re.search(r"\bema\(decay=([\d.]+)([^()]*)\)", evidence.words)
    if not updates or not updates[-1] > 0:
        return None
    decay = float(found[1]) if found is not None else 0.0
    corrected = found is not None and re.search("debias=True|warmup=", found[2]) is not None
    window = 0.0 if corrected or decay >= 1 else 1 / (1 - decay)
    return Seen(
        window / updates[-1],
        f"the average is over {window:.0f} updates, of {updates[-1]:.0f} in all",
        "Lower `decay`, or give `debias=True` or a `warmup`",
    )


@rule(above=0.5)
def updates_round_away(evidence: Evidence) -> Seen | None:
    """Updates below half a unit in the last place of parameters of few bits: nothing is added."""
    task, stepped = evidence.task, evidence.stepped
    if task is None or stepped is None or evidence.gradient is None:
        return None
    coarse = kept = 0
    after, grads = dict(tree.items(stepped.params)), dict(tree.items(evidence.gradient))
    for path, p in evidence.leaves():
        if jnp.finfo(p.dtype).bits >= 32 or task.policy.stochastic_rounding:  # type: ignore[union-attr]
            continue
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
def loss_scale_collapsed(evidence: Evidence) -> Seen | None:
    """A loss scale that was halved again and again."""
    scales = evidence.finite("loss_scale")
    if len(scales) < 2:
        return None
    number = math.log2(max(scales) / scales[-1]) if scales[-1] > 0 else math.inf
    return Seen(
        number,
        f"the loss scale was halved {number:.0f} times over, to {scales[-1]:.3g}",
        "Numbers that are not finite are not for want of range: look for them with `tools.find_nonfinite`",
    )
