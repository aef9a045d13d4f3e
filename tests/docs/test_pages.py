"""Every page of the site runs, block after block, as a reader would paste it; what it says is printed is printed."""

import contextlib
import doctest
import importlib.util
import io
import re
import sys
import traceback
import types
import warnings
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)
PEERS = {"Keras": "keras", "Lightning": "lightning", "optax and Flax": "flax", "Hugging Face": "transformers"}
"""Whose programs stand beside ours in a pair of blocks, and the module that has to be there to run them."""


def blocks(text):
    """`(kind, code, first line)` of each block that runs: kind is `ours`, `text` (is printed), or a peer's name."""
    for found in FENCE.finditer(text):
        language, argument, code = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        caption = re.match(r"((?::\w+:.*\n)*):caption: (.+)\n", code)
        if language == "{code-block}" and argument == "python":
            assert caption, f"line {line}: a block in a pair says whose it is"
            yield caption[2] if caption[2] in PEERS else "ours", "\n" + code[caption.end() :], line
        elif language == "python":
            yield "ours", code, line
        elif language == "text":
            yield "text", code, line


def said(want, got):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(want, got, flags)


def run(page, text):
    """Run the page's blocks, each author's in a module of its own."""
    modules, printed = {}, ""
    try:
        for kind, code, line in blocks(text):
            if kind == "text":
                assert said(code, printed), f"{page}, line {line}: printed was\n{printed}"
                continue
            if kind in PEERS and importlib.util.find_spec(PEERS[kind]) is None:
                continue
            module = modules.setdefault(kind, types.ModuleType(f"page_{kind}".replace(" ", "_")))
            sys.modules[module.__name__] = module
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out), warnings.catch_warnings():
                    if kind in PEERS:  # what another library warns of is its own
                        warnings.simplefilter("ignore")
                    exec(compile("\n" * line + code, page, "exec"), vars(module))
            except Exception as error:
                pytest.fail(f"{page}: {traceback.format_exc(limit=-3)}{error}", pytrace=False)
            printed = out.getvalue()
    finally:
        for module in modules.values():
            del sys.modules[module.__name__]


def pages():
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS).as_posix()
        if not name.startswith("_build") and any(kind != "text" for kind, *_ in blocks(path.read_text())):
            yield name


PAGES = list(pages())


@pytest.mark.parametrize("name", PAGES)
def test_page(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # where it is installed; what it has by default is not
    # A reader's JAX is not set up as strictly as the tests'.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        run(name, (DOCS / name).read_text())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", r"printed was\s+1"),
        ("```python\nx = 1\n```\n```python\ny\n```\n", "'y' is not defined"),
    ],
)
def test_a_page_that_is_wrong_is_found(text, fault):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=fault):
        run("page.md", text)


def test_there_is_a_page_for_each_question():
    assert len([name for name in PAGES if name.startswith("guides/")]) >= 20
    assert {name for name in PAGES if name.startswith("coming_from/")} == {
        f"coming_from/{peer}.md" for peer in ("keras", "lightning", "optax_flax", "trainer")
    }


def test_the_full_batch_regression_is_there():
    text = (DOCS / "start.md").read_text()
    assert "epochs=100" in text
    assert (
        len(re.findall(r"^epoch +\d+0  loss", text, re.M)) == 10
    )  # and `test_page` sees that they are printed


def test_the_four_pages_are_there():
    pages = [
        "fifteen_minutes.md",
        "guides/callbacks.md",
        "guides/faster.md",
        "ideas.md",
    ]  # training, callbacks, tips
    assert {*pages} <= {*PAGES}
    assert "way_of_a_batch.svg" in (DOCS / "ideas.md").read_text()  # the pipeline's picture
