"""The public surface, written down: a name or an argument that goes, comes or moves shows in `tests/surface.txt`.

After a change that is meant: `python tests/test_surface.py`, and a line in CHANGELOG.md.
"""

import inspect
import pathlib
import types

import pytest

import fntrain as ft

GOLDEN = pathlib.Path(__file__).with_name("surface.txt")
MODULES = [ft, *(x for x in (getattr(ft, name) for name in ft.__all__) if isinstance(x, types.ModuleType))]


def arguments(x) -> str:
    """`(a, *, b=1)`: names, order and defaults; annotations are the type checker's business."""
    try:
        signature = inspect.signature(x)
    except (TypeError, ValueError):
        return ""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    bare = [p.replace(default=_Shown(p.default)) if p.default is not p.empty else p for p in bare]
    return str(inspect.Signature(bare))


class _Shown:
    def __init__(self, value):
        self.text = f"{value.__name__}" if callable(value) and hasattr(value, "__name__") else repr(value)

    def __repr__(self):
        return self.text


def names_of(module) -> list[str]:
    return getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]


def surface() -> str:
    lines = []
    for module in MODULES:
        short = "ft" if module is ft else f"ft.{module.__name__.rsplit('.', 1)[-1]}"
        for name in sorted(names_of(module)):
            x = getattr(module, name)
            if isinstance(x, types.ModuleType):
                continue
            lines.append(f"{short}.{name}{arguments(x)}")
            if inspect.isclass(x) and x.__module__.startswith("fntrain"):
                methods = [k for k, f in vars(x).items() if inspect.isfunction(f) and not k.startswith("_")]
                lines += [f"{short}.{name}.{k}{arguments(vars(x)[k])}" for k in sorted(methods)]
    return "\n".join(lines) + "\n"


def test_the_surface_is_what_is_written_down():
    now, then = surface().splitlines(), GOLDEN.read_text().splitlines()
    gone, new = sorted({*then} - {*now}), sorted({*now} - {*then})
    assert (gone, new) == ([], []), "if meant: python tests/test_surface.py"


def test_fifty_names_at_most_and_they_exist():
    assert len(ft.__all__) == len(set(ft.__all__)) <= 50
    for module in MODULES:
        shown = [name for name in dir(module) if not name.startswith("_")]
        assert shown == sorted(names_of(module)), module
        assert all(hasattr(module, name) for name in shown)


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_nothing_of_others_is_shown(module):
    for name in names_of(module):
        x = getattr(module, name)
        home = x.__name__ if isinstance(x, types.ModuleType) else getattr(x, "__module__", "fntrain")
        assert home.startswith("fntrain") or home in ("typing", "types"), name  # an alias


def test_older_names_stay_importable():
    for name in ("momentum", "nesterov", "ema", "skip_nonfinite", "ConfigError", "DataError", "BadStep"):
        assert callable(getattr(ft, name))
        assert name not in ft.__all__


@pytest.mark.parametrize(
    ("module", "name", "hint"),
    [
        (ft, "EarlyStopping", "fntrain.callbacks.EarlyStopping"),
        (ft, "adamw", "fntrain.optimizers.adamw"),
        (ft, "clip_by_nrm", "did you mean 'clip_by_norm'"),
        (ft.metrics, "acuracy", "did you mean 'accuracy'"),
        (ft.schedules, "cosin", "did you mean 'cosine'"),
        (ft.tree, "pathes", "did you mean 'paths'"),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_the_one_meant(module, name, hint):
    with pytest.raises(AttributeError, match=hint):
        getattr(module, name)
    assert not hasattr(ft.losses, "jnp")


if __name__ == "__main__":
    GOLDEN.write_text(surface())


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        (ft.chain, "Transform"),
        (ft.optimizers.adamw, "Transform"),
        (ft.schedules.cosine, "Schedule"),
        (ft.metrics.accuracy, "Metric"),
    ],
)
def test_help_says_what_a_factory_makes(factory, kind):
    assert inspect.signature(factory).return_annotation.__name__ == kind
