"""The reference from the docstrings, and links to it from every public name that stands in code.

    ```{reference} fntrain.losses
    cross_entropy
    mse
    ```

documents these names, each as what it is: function, class, exception or value. A public name between backticks, in a
page or a docstring, is a link to where it is documented.
"""

import ast
import functools
import importlib
import inspect
import itertools
import pathlib
import re
import sys
import types

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective

import fntrain

PACKAGE = pathlib.Path(fntrain.__file__).parent
MODULES = {
    name: x
    for name, x in vars(fntrain).items()
    if isinstance(x, types.ModuleType) and name in fntrain.__all__
}

for (
    short,
    module,
) in (
    MODULES.items()
):  # under their short names for autodoc too: errors and plots live deeper
    sys.modules.setdefault(f"fntrain.{short}", module)


def names_of(module: types.ModuleType) -> list[str]:
    """The public names of a module, those of the errors included, which has no `__all__`."""
    return [
        name
        for name in getattr(module, "__all__", None)
        or [n for n in vars(module) if not n.startswith("_")]
        if not isinstance(getattr(module, name), types.ModuleType)
    ]


class Reference(SphinxDirective):
    """The names in its content, one a line, of the module that is its argument."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = ["````{eval-rst}", f".. py:currentmodule:: {self.arguments[0]}", ""]
        for name in (word for line in self.content for word in line.split()):
            lines += [*directive(module, name), ""]
        return self.parse_text_to_nodes(
            "\n".join([*lines, "````"]), allow_section_headings=True
        )


def directive(module: types.ModuleType, name: str) -> list[str]:
    """The directive of autodoc for it."""
    x = getattr(module, name)
    if inspect.isclass(x) and issubclass(x, Exception):
        return [f".. autoexception:: {name}"]
    if inspect.isclass(x):
        return [f".. autoclass:: {name}", "   :members:"]
    if callable(x) and hasattr(x, "__name__"):
        return [f".. autofunction:: {name}"]
    keys = ", ".join(f"``{key}``" for key in x) if isinstance(x, dict | tuple) else ""
    return [
        f".. py:data:: {name}",
        "",
        f"   {words_under(module, name)}",
        "",
        f"   {keys}",
    ]


def words_under(module: types.ModuleType, name: str) -> str:
    """What the text under a value says, in the file of the module's folder that makes it."""
    for path in sorted(pathlib.Path(module.__file__).parent.glob("*.py")) + sorted(
        PACKAGE.rglob("*.py")
    ):
        body = ast.parse(path.read_text()).body
        for made, said in itertools.pairwise(body):
            target = (
                made.targets[0]
                if isinstance(made, ast.Assign)
                else getattr(made, "target", None)
            )
            if getattr(target, "id", None) == name and isinstance(
                getattr(said, "value", None), ast.Constant
            ):
                return " ".join(said.value.value.split())
    raise ValueError(
        f"nothing is said of {module.__name__}.{name}: write a text under it"
    )


@functools.cache
def homes() -> dict[str, str]:
    """`{name: where it is documented}`, by a bare name where that is of one thing only, and by its name in a module."""
    out, bare = {}, {}
    for short, module in MODULES.items():
        for name in names_of(module):
            out[f"{short}.{name}"] = f"fntrain.{short}.{name}"
            bare.setdefault(name, []).append(f"fntrain.{short}.{name}")
    out |= {name: found[0] for name, found in bare.items() if len(found) == 1}
    by_identity = {
        id(getattr(MODULES[key.split(".")[0]], key.split(".")[1])): home
        for key, home in out.items()
        if "." in key
    }
    for name in fntrain.__all__:
        x = getattr(fntrain, name)
        if not isinstance(x, types.ModuleType):
            out[name] = by_identity.get(id(x), f"fntrain.{name}")
    return out


def home(text: str) -> str | None:
    """Where what is called so in code is documented; None if it is no public name, or might be an argument's."""
    found = re.match(r"(ft\.|fntrain\.)?([A-Za-z_][\w.]*)(\(.*\))?$", text, re.S)
    if not found:
        return None
    prefix, name, call = found.groups()
    parts = name.split(".")
    said = prefix or call or len(parts) > 1 or "_" in name or name[:1].isupper()
    for length in (len(parts), len(parts) - 1):  # a method stands at its class
        if said and (where := homes().get(".".join(parts[:length]))):
            return ".".join([where, *parts[length:]])
    return None


def linked(text: str, where: nodes.literal, docname: str) -> nodes.Node:
    target = home(text)
    if target is None:
        return where
    return pending_xref(
        "",
        where,
        refdoc=docname,
        refdomain="py",
        reftype="obj",
        reftarget=target,
        refwarn=False,
        refexplicit=True,
    )


def public(name, rawtext, text, lineno, inliner, options=None, content=()):
    """The role of single backticks in docstrings."""
    where = nodes.literal(rawtext, text.replace("\x00", "\\"), classes=["code"])
    return [linked(text, where, inliner.document.settings.env.docname)], []


class Links(SphinxTransform):
    """Code in a page that is a public name becomes a link."""

    default_priority = 400

    def apply(self) -> None:
        for node in list(self.document.findall(nodes.literal)):
            if not isinstance(
                node.parent, pending_xref | nodes.reference | nodes.title
            ):
                copy = node.deepcopy()
                found = linked(node.astext(), copy, self.env.docname)
                if found is not copy:
                    node.replace_self(found)


def skip_fields(app, kind, name, x, skip, options):
    """A named tuple's fields are in its docstring; Python's own words on each say nothing."""
    return True if type(x).__name__ in ("_tuplegetter", "member_descriptor") else None


def setup(app):
    app.add_directive("reference", Reference)
    app.add_role("public", public)
    app.add_transform(Links)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
