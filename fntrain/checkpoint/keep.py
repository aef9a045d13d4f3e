"""Keep: which checkpoints stay."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._core import check
from .._core.errors import ConfigError
from .._core.ranking import best_of, of_loss


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest, the best one and a periodic choice, together.

    Args:
      latest: how many of the highest steps stay, >= 1. The step saved last always does. A step whose parameters
        are not finite is not counted, so that it pushes no other out.
      best: `(name, mode)`, the entry of `metrics` to rank by and `"min"` or `"max"`, or `"auto"`, for a loss; the
        best step stays, on a tie the earlier one. A step without the entry, where it is NaN or infinite, or
        whose parameters are not finite, is never the best. None ranks nothing.
      every: steps divisible by this stay for good; None for no such steps, 1 to delete nothing.

    Raises:
      ConfigError: if a number is no integer >= 1, or `best` no pair of a name and a mode, or its mode `"auto"` for
        a name that is no loss, of which only the metric of a task says what is better.

    Examples:
      >>> losses = {10: 0.9, 20: 0.2, 30: 0.4, 40: 0.5, 50: float("nan")}
      >>> keep = Keep(latest=1, best=("loss", "min"), every=40)
      >>> sorted(keep.kept({step: {"loss": loss} for step, loss in losses.items()}))
      [20, 40, 50]
    """

    latest: int = 3
    best: tuple[str, Literal["auto", "min", "max"]] | None = ("val_loss", "auto")
    every: int | None = None

    def __post_init__(self) -> None:
        check.integer("latest", self.latest, at_least=1)
        if self.every is not None:
            check.integer("every", self.every, at_least=1)
        if self.best is not None:
            pair = tuple(self.best) if isinstance(self.best, tuple | list) else ()
            if len(pair) != 2 or not isinstance(pair[0], str):
                raise ConfigError(
                    f'`best` must be a pair such as ("val_loss", "min") or None, got {self.best!r}'
                )
            check.name("best", pair[0])
            check.one_of("best", pair[1], ("auto", "min", "max"))
            mode = of_loss(pair[0]) if pair[1] == "auto" else pair[1]
            if mode is None:
                raise ConfigError(
                    f'`best` must say "min" or "max" for {pair[0]!r}, as in `best=({pair[0]!r}, "max")`: which is '
                    f"better only a task's metric knows; got 'auto'"
                )
            object.__setattr__(self, "best", (pair[0], mode))

    def best_step(self, metrics: Mapping[int, Mapping[str, Any]]) -> int | None:
        """The step with the best finite value, the earlier one on a tie; None if there is none."""
        if self.best is None:
            return None
        name, mode = self.best
        assert mode != "auto"  # decided when it was made
        return best_of({step: metrics[step].get(name) for step in sorted(metrics)}, mode)

    def kept(self, metrics: Mapping[int, Mapping[str, Any]], spoilt: Collection[int] = ()) -> set[int]:
        """Which of the steps (the keys of `metrics`) stay, if in some of them parameters are not finite."""
        sound = {step: metrics[step] for step in metrics if step not in spoilt}
        kept = set(sorted(sound)[-self.latest :]) | {self.best_step(sound)}
        if not sound:
            kept = set(sorted(metrics)[-self.latest :])
        return {step for step in metrics if step in kept or (self.every and step % self.every == 0)}
