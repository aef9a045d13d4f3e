"""A call that does not fit its function: which argument it has not, lacks or has too many of, and what was meant.

Python says this too, in a TypeError that knows no nearest name and, behind a wrapper, not the function. The error here
is one as well, so what catches those goes on to.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .check import did_you_mean
from .errors import ArgumentError

F = TypeVar("F", bound=Callable[..., Any])

ELSEWHERE = {
    "betas": "b1",
    "decay_steps": "steps",
    "default_root_dir": "run_dir",
    "eval_dataset": "validation_data",
    "filepath": "directory",
    "log_dir": "run_dir",
    "logdir": "run_dir",
    "model": "params",
    "num_train_epochs": "epochs",
    "opt": "tx",
    "optimizer": "tx",
    "output_dir": "run_dir",
    "rng": "key",
    "save_dir": "run_dir",
    "seed": "key",
    "T_max": "steps",
    "total_steps": "steps",
    "train_data": "data",
    "train_dataloaders": "data",
    "train_dataset": "data",
    "train_size": "fraction",
    "transition_steps": "steps",
    "val_data": "validation_data",
    "val_dataloaders": "validation_data",
}
"""What other libraries call an argument that has another name here: said, where the function has that one."""

_GOES_ON = "a run goes on by `run_dir=…, resume=True`, and `epochs` are those in all"
_OF_THE_TASK = "that is the Task's: `Task(loss_fn, tx, metrics)`"
_OF_THE_LOSS = "that is the loss's, `losses.cross_entropy(logits, labels, {})`"
_PAIR = "give both as one `data`, a tuple: `(x, y)`"
IN_WORDS = {
    "ckpt_path": ("resume", _GOES_ON),
    "class_weight": ("task", _OF_THE_LOSS.format("class_weights=…")),
    "initial_epoch": ("resume", _GOES_ON),
    "loss": ("task", _OF_THE_TASK),
    "lr": ("task", "that is the optimizer's: `Task(loss_fn, optimizers.adam(1e-3))`"),
    "metrics": ("task", _OF_THE_TASK),
    "optimizer": ("task", _OF_THE_TASK),
    "sample_weight": ("task", _OF_THE_LOSS.format("weights=…") + ", from a column of `data`"),
    "steps_per_epoch": ("steps", "an epoch is all of `data`; `steps` are the batches of the whole run"),
    "test_size": ("fraction", "did you mean 'fraction', of the first part, which is 1 - `test_size`?"),
    "validation_batch_size": ("validation_data", "validations take `batch_size` as well"),
    "validation_split": (
        "validation_data",
        "split first: `train, held_out = fntrain.split(data, 0.8)`, then `validation_data=held_out`",
    ),
    "x": ("data", _PAIR),
    "y": ("data", _PAIR),
}
"""Likewise, where one name is not enough: the argument that the function has, and what to do."""


def checked(function: F) -> F:
    """The function, whose calls that do not fit raise an ArgumentError; nothing is looked at in those that fit.

    Errors from inside it are left alone: what does not fit fails before there is a frame of the function.
    """
    name = getattr(function, "__hands_over__", None)
    place = list(inspect.signature(function).parameters).index(name) if name else 0

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if name is not None:
            if name in kwargs:
                kwargs[name] = Handed(kwargs[name])
            elif len(args) > place:
                args = (*args[:place], Handed(args[place]), *args[place + 1 :])
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise misfit(function, args, kwargs) or error from None

    call.__checked__ = function  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


class Handed:
    """An argument that a function is to be the only one to hold: the frame of its check holds this, and it is empty."""

    __slots__ = ("_held",)

    def __init__(self, held: Any):
        self._held = held

    def take(self) -> Any:
        """What is in it, once."""
        held, self._held = self._held, None
        return held


def hands_over(name: str) -> Callable[[F], F]:
    """Mark a function that lets go of one of its arguments while it runs; it gets that one by `taken`."""

    def mark(function: F) -> F:
        function.__hands_over__ = name  # type: ignore[attr-defined]
        return function

    return mark


def taken(argument: Any) -> Any:
    """The argument that was handed over, if it was, by a check; else the argument."""
    return argument.take() if isinstance(argument, Handed) else argument


def check_class(kind: type[Any]) -> None:
    """Make the calls of a class, and of its public methods, `checked`: in place, as classes are known by identity."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != __name__.partition(".")[0]:
            continue
        for name, method in list(vars(base).items()):
            own_new = name == "__new__" and "_fields" not in vars(
                base
            )  # those of state tuples run at every step
            bare = method.__func__ if own_new else method
            # Events are called by a run and not by a user.
            called = own_new or name == "__init__" or not name.startswith(("_", "on_"))
            if called and isinstance(bare, types.FunctionType) and not hasattr(bare, "__checked__"):
                setattr(base, name, staticmethod(checked(bare)) if own_new else checked(bare))


def misfit(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    signature: inspect.Signature | None = None,
) -> ArgumentError | None:
    """What is wrong with a call, in words; None if it fits."""
    signature = signature or inspect.signature(function)
    parameters = dict(signature.parameters)
    name = getattr(function, "__qualname__", type(function).__name__).rpartition("<locals>.")[2]
    if (first := next(iter(parameters), "")) in ("self", "cls") and args:
        if name.endswith((".__init__", ".__new__")):
            name = (args[0] if first == "cls" else type(args[0])).__name__
        parameters.pop(first)
        args = args[1:]
    form = f"`{name}({_listed(parameters)})`"
    first_few = f"`{name}({_listed(parameters, 8)})`"
    kinds = {p.kind for p in parameters.values()}
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    by_place = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        for key in kwargs:
            if key not in named:
                hint = meant(key, named)
                return ArgumentError(f"`{key}` is no argument of {first_few if hint else form}{hint}")
    if len(args) > len(by_place) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        by_name = [n for n in named if n not in by_place]
        required = bool(by_place) and parameters[by_place[-1]].default is inspect.Parameter.empty
        return ArgumentError(_too_many(f"`{name}`", first_few, args, by_place, by_name, required))
    for key in by_place[: len(args)]:
        if key in kwargs:
            return ArgumentError(f"`{key}` is given twice to {first_few}, by position and by name")
    lacking = [
        n
        for n, p in parameters.items()
        if p.default is p.empty
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and n not in kwargs
        and n not in by_place[: len(args)]
    ]
    if lacking:
        got = ", ".join([*by_place[: len(args)], *kwargs]) or "nothing"
        return ArgumentError(f"{_names(lacking)} must be given to {first_few}, got {got}")
    return None


def meant(key: str, names: list[str]) -> str:
    """`; did you mean 'x'?`, or what to do, for an argument in another spelling or another library's word."""
    argument, said = IN_WORDS.get(key, ("", ""))
    if argument in names:
        return f"; {said}"
    known = ELSEWHERE.get(key)
    return did_you_mean(known if known in names else key, names)


def _too_many(
    name: str, form: str, args: tuple[Any, ...], by_place: list[str], by_name: list[str], required: bool
) -> str:
    said = f"{name} takes {len(by_place)} argument{'s' * (len(by_place) != 1)} by position, got {len(args)}: {form}"
    if required and hasattr(args[len(by_place)], "shape") and hasattr(args[len(by_place) - 1], "shape"):
        return f"{said}; give several arrays as one `{by_place[-1]}`, a tuple: `(x, y)`"
    return f"{said}; give what comes after them by name: `{by_name[0]}=…`" if by_name else said


def _listed(parameters: Mapping[str, inspect.Parameter], most: int | None = None) -> str:
    words, star = [], False
    for name, p in parameters.items():
        if p.kind is p.KEYWORD_ONLY and not star:
            words.append("*")
        star |= p.kind in (p.VAR_POSITIONAL, p.KEYWORD_ONLY)
        words.append({p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + name)
    return ", ".join(words if most is None or len(words) <= most else [*words[:most], "…"])


def _names(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)
