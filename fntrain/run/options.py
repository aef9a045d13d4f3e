"""Options: what `fit` is asked for, looked at before anything runs."""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

from .._core import check
from .._core.errors import ConfigError
from ..data.cut import sizes
from .cadence import cadence
from .events import CallbackList
from .identity import OVERRIDES


@dataclasses.dataclass(frozen=True)
class Options:
    """The keywords of `fit`, of which its docstring tells.

    Raises:
      ConfigError: if one is out of range, or two of them contradict each other.
    """

    epochs: int | None
    steps: int | None
    batch_size: Any
    shuffle: bool
    seed: int
    validation_data: Any
    validation_every: int | None
    evaluate_at: Literal["params", "averaged", "both"]
    callbacks: Iterable[Any]
    run_dir: Any
    checkpoint_every: int | str | None
    resume: bool | Literal["must"]
    override: Collection[str]
    steps_per_call: int | Literal["auto"]
    log_every: int
    max_time: float | None
    prefetch: int | None
    donate: bool
    microbatches: int | Literal["auto"] | None
    rebuild: int
    progress: bool
    verbose: bool
    keep_best: bool | str | tuple[str, str] | None
    rehearse: bool
    data_on_device: bool | Literal["auto"]
    recompile: Literal["warn", "raise", "ignore"]
    train_step: Callable[..., Any] | None
    eval_step: Callable[..., Any] | None
    listeners: CallbackList = dataclasses.field(init=False)  # the callbacks, each looked at
    best: tuple[str, Any] | None = dataclasses.field(
        init=False
    )  # the column to keep the best of, and its mode
    saving: int | float | None = dataclasses.field(init=False)  # steps between saves, or seconds, a float

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(
                f"give `epochs` or `steps`, not both (got epochs={self.epochs}, steps={self.steps})"
            )
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 10)
        for name in ("epochs", "steps", "validation_every"):
            if getattr(self, name) is not None:
                check.integer(name, getattr(self, name), at_least=1)
        for name in ("shuffle", "donate", "progress", "rehearse"):
            check.flag(name, getattr(self, name))
        shown = "; it says what the run will do before it begins, and `progress=False` is what shows nothing of it"
        check.flag("verbose", self.verbose, shown)
        if self.data_on_device != "auto":
            check.flag("data_on_device", self.data_on_device)
        if self.max_time is not None:
            check.number("max_time", self.max_time, above=0)
        if self.prefetch is not None:
            check.integer("prefetch", self.prefetch, at_least=0)
        check.integer("log_every", self.log_every, at_least=1)
        check.integer("rebuild", self.rebuild, at_least=0)
        if self.microbatches not in (None, "auto"):
            check.integer("microbatches", self.microbatches, at_least=1)
        if self.steps_per_call != "auto":
            check.integer("steps_per_call", self.steps_per_call, at_least=1)
        if self.validation_every is not None and self.validation_data is None:
            raise ConfigError("`validation_every` needs `validation_data`")
        check.one_of("evaluate_at", self.evaluate_at, ("params", "averaged", "both"))
        check.one_of("recompile", self.recompile, ("warn", "raise", "ignore"))
        if self.evaluate_at != "params" and self.validation_data is None:
            raise ConfigError("`evaluate_at` is for `validation_data`, and there is none")
        if self.run_dir is None and (self.resume or self.checkpoint_every is not None):
            raise ConfigError("`resume` and `checkpoint_every` need a `run_dir`")
        if isinstance(self.override, str) or not isinstance(self.override, Collection):
            raise ConfigError(
                f"`override` must be a tuple of names, got {self.override!r}; write `override=({self.override!r},)`"
            )
        for name in self.override:
            check.one_of("override", name, OVERRIDES)
        if self.override and not self.resume:
            raise ConfigError("`override` says what may differ on a resume: it needs `resume=True`")
        if callable(self.callbacks) or not isinstance(self.callbacks, Iterable):
            raise ConfigError(
                f"`callbacks` must be a list, got {self.callbacks!r}; write `callbacks=[...]`, also for one"
            )
        object.__setattr__(self, "batch_size", sizes(self.batch_size))
        object.__setattr__(self, "listeners", CallbackList(self.callbacks))
        object.__setattr__(self, "best", _best(self.keep_best))
        object.__setattr__(self, "saving", cadence("checkpoint_every", self.checkpoint_every))

    @property
    def edges(self) -> list[int]:
        """A dispatch does not run over a multiple of these."""
        return [every for every in (self.saving, self.validation_every) if isinstance(every, int)]


def _best(keep_best: Any) -> tuple[str, Any] | None:
    """`keep_best` as a column and a mode; None where nothing is to be kept."""
    if keep_best is None or keep_best is False:
        return None
    column, mode = ("val_loss", "auto") if keep_best is True else (keep_best, "auto")
    if isinstance(keep_best, tuple) and len(keep_best) == 2:
        column, mode = keep_best
    if not isinstance(column, str) or mode not in ("auto", "min", "max"):
        raise ConfigError(
            f'`keep_best` must be True, the name of a column, or a pair such as `("val_accuracy", "max")`, got '
            f"{check.said(keep_best)}"
        )
    return column, mode
