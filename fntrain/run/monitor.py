"""The watched column, and which of its values are better: what several callbacks share."""

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import check
from .._core.errors import ConfigError
from .._core.ranking import Direction
from ..metrics.names import ALIASES
from ..step.task import COLUMNS
from .context import LoopContext, Mode
from .history import EACH


class Monitor:
    """A column of the epoch's logs that a callback watches.

    Args:
      column: its name; a metric of the task may stand in it under another of `metrics.names.ALIASES`, as `"val_acc"`.
      mode: `"min"`, `"max"`, or `"auto"`, for which the metric that the column comes from says which.
      argument: what the column is called in a message.

    Raises:
      ConfigError: if the name is no string, or the mode another word.
    """

    def __init__(self, column: str, mode: Mode = "auto", argument: str = "monitor"):
        if not isinstance(column, str):
            raise ConfigError(f"`{argument}` must be the name of a logged column, got {column!r}")
        check.one_of("mode", mode, ("auto", "min", "max"))
        self.column: str = column
        self._given = column
        self.mode: Mode = mode
        self._argument = argument
        self._direction: Direction | None = None

    @property
    def direction(self) -> Direction:
        """`"min"` or `"max"`, known once a run has begun, or from the start where `mode` says it."""
        if self.mode != "auto":
            return self.mode
        assert self._direction is not None, "on_fit_begin was not called"
        return self._direction

    def begin(self, ctx: LoopContext, required: bool = True) -> None:
        """Refuse, before anything runs, a column that no epoch will have, or whose direction is not known.

        Args:
          ctx: the run's.
          required: whether every epoch must have the column.

        Raises:
          ConfigError: naming the columns that there are.
        """
        self.column = self._given if ctx.columns and self._given in ctx.columns() else self._of_the_task(ctx)
        if required and ctx.columns is not None and self.column not in (known := ctx.columns()):
            raise self._missing(known)
        self._direction = ctx.direction(self.column, self.mode)

    def read(self, ctx: LoopContext) -> float:
        """The column's value in this epoch.

        Raises:
          ConfigError: if there is none, listing those there are; or if another has the name by which this one goes too.
        """
        if self.column != self._given and self._given in ctx.logs:
            raise ConfigError(
                f"`{self._argument}={self._given!r}` was taken for {self.column!r}, and a callback logs a column of "
                f"that name as well; give its column another name, or write {self.column!r}"
            )
        value = ctx.logs.get(self.column)
        if not _is_number(value):
            known = [name for name, x in ctx.logs.items() if _is_number(x)]
            raise self._missing([name for name in known if name not in COLUMNS])
        return float(value)  # type: ignore[arg-type]

    def each(self, ctx: LoopContext) -> Any:
        """The same; of a population, an array `[N]` with the value of each member.

        Raises:
          ConfigError: as `read`.
        """
        value = self.read(ctx)
        each = ctx.logs.get(self.column + EACH)
        return value if each is None else np.asarray(each, np.float64)

    def _of_the_task(self, ctx: LoopContext) -> str:
        """The column of the task's metric that goes by this name too, if there is one."""
        for prefix in ("", *ctx.history.prefixes):
            name = self._given.removeprefix(prefix)
            same = [own for own in ctx.task.metrics if ALIASES.get(own, own) == ALIASES.get(name, name)]
            if self._given.startswith(prefix) and len(same) == 1:
                return prefix + same[0]
        return self._given

    def watches(self) -> dict[str, Any]:
        """What it is, once a run has begun: what is remembered of one column says nothing of another."""
        return {"monitor": self.column, "mode": self.direction}

    def _missing(self, known: list[str]) -> ConfigError:
        hint = check.did_you_mean(self.column, known)
        if self.column.startswith("val_") and not any(name.startswith("val_") for name in known):
            hint = "; pass `validation_data` to `fit`"
        names = ", ".join(map(repr, known))
        return ConfigError(
            f"`{self._argument}` must be a number that an epoch logs, one of {names}, got {self.column!r}{hint}"
        )

    def __str__(self) -> str:
        return f"{self.column} ({self._direction or self.mode})"


def _is_number(x: object) -> bool:
    """Whether it is one real number: Python's, NumPy's, or an array of shape ()."""
    if isinstance(x, jax.Array | np.ndarray) and x.shape == ():
        return jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    return isinstance(x, numbers.Real) and not isinstance(x, bool | np.bool_)
