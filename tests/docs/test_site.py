"""The site: every public name is in the reference; where it was built, links lead somewhere and a browser likes it.

Built it is by `python -m sphinx -W -b html docs docs/_build/html`, which `.ci/run` does before the tests.
"""

import contextlib
import functools
import html.parser
import http.server
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

import fntrain as ft

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "_build" / "html"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
NARROW = [
    "index.html",
    "start.html",
    "ideas.html",
    "models.html",
    "speed.html",
    "gallery.html",
    "coming_from/keras.html",
]
NARROW += [
    "guides/resume.html",
    "notebooks/01_compose_transforms.html",
    "reference/transforms.html",
    "reference/run.html",
]

WIDE = """() => [...document.querySelectorAll(".highlight pre")]
    .filter(block => block.scrollWidth > block.clientWidth)
    .map(block => block.innerText.split("\\n").reduce((a, b) => a.length > b.length ? a : b))"""

built = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site is not built")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser was found on PATH")


def thing(dotted):
    x = ft
    for name in dotted.split(".")[1:]:
        x = getattr(x, name)
    return x


def documented():
    """What the pages of the reference say they document, by name and by identity."""
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for module, names in re.findall(r"^```\{reference\} (\S+)\n(.*?)^```", path.read_text(), re.M | re.S):
            yield from (f"{module}.{name}" for name in names.split())


def test_every_public_name_is_in_the_reference():
    pages = list(documented())
    assert len(pages) == len(set(pages))
    there = {*pages}, {id(thing(name)) for name in pages}
    surface = [line.partition("(")[0] for line in (ROOT / "tests" / "surface.txt").read_text().splitlines()]
    public = ["fntrain" + name.removeprefix("ft") for name in surface]
    classes = {name for name in public if isinstance(thing(name), type)}
    missing = [
        name
        for name in public
        if name.rpartition(".")[0] not in classes and name not in there[0] and id(thing(name)) not in there[1]
    ]
    assert missing == [], "name each on the page of its concept in docs/reference"


class Page(html.parser.HTMLParser):
    """The links, anchors and resources of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.resources = [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if key in attrs}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("script", "img", "source", "iframe") and attrs.get("src"):
            self.resources.append(attrs["src"])
        if tag == "link" and attrs.get("href") and attrs.get("rel") in ("stylesheet", "icon", "preload"):
            self.resources.append(attrs["href"])


@functools.cache
def page(path):
    return Page(path)


@built
def test_links_lead_somewhere_and_nothing_is_fetched():
    dead, fetched, foreign = [], [], re.compile(r"[a-z]+:|//")
    for path in SITE.rglob("*.html"):
        for resource in page(path).resources:
            if foreign.match(resource) and not resource.startswith("data:"):
                fetched.append((path.name, resource))
            elif (
                not foreign.match(resource)
                and not (path.parent / unquote(resource.partition("?")[0])).exists()
            ):
                dead.append((path.name, resource))
        for link in page(path).links:
            if foreign.match(link):
                continue
            file, _, anchor = link.partition("#")
            target = path if not file else (path.parent / unquote(file)).resolve()
            if not target.exists() or (
                anchor and target.suffix == ".html" and unquote(anchor) not in page(target).anchors
            ):
                dead.append((path.name, link))
    assert (dead, fetched) == ([], [])


@contextlib.contextmanager
def served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@built
@needs_browser
@pytest.mark.slow
def test_a_reader_finds_reads_and_copies(browser):
    wrong = []
    with served(SITE) as address:
        context = browser.new_context(color_scheme="dark", viewport={"width": 1280, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.on("console", lambda message: message.type == "error" and wrong.append(message.text))
        context.on("request", lambda r: r.url.startswith((address, "data:")) or wrong.append(r.url))
        tab = context.new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))

        # Search.
        tab.goto(address + "search.html?q=clip_by_norm")
        found = tab.locator("#search-results a[href*='clip_by_norm']")
        found.first.wait_for()
        assert any(
            "transforms.html#fntrain.transforms.clip_by_norm" in a
            for a in found.evaluate_all("x => x.map(a => a.href)")
        )

        # Mathematics, in the font that the site brings.
        tab.goto(address + "reference/transforms.html")
        tab.evaluate("document.fonts.ready")
        formula = tab.locator("dl:has(> dt[id='fntrain.transforms.clip_by_norm']) math").first
        box = formula.bounding_box()
        assert box["width"] > 60, box
        assert box["height"] > 20, box
        assert tab.evaluate("document.fonts.check('16px \"STIX Two Math\"')")

        # Code is copied, without its prompts.
        tab.goto(address + "start.html")
        block = tab.locator("div.highlight-python").first
        block.hover()
        block.locator("button.copybtn").click()
        copied = tab.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("import jax.numpy as jnp")
        assert ">>>" not in copied

        # Dark, as the system says, and light, as the reader does.
        def brightness():
            return sum(
                map(
                    int,
                    re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[:3],
                )
            )

        assert brightness() < 200
        for _ in range(3):
            if tab.evaluate("document.body.dataset.theme") != "light":
                tab.locator(".theme-toggle:visible").first.click()
        assert brightness() > 600

        # Code on the pages that people learn from is read without scrolling sideways.
        for folder in (SITE, SITE / "guides", SITE / "coming_from"):
            for path in sorted(folder.glob("*.html")):
                tab.goto(address + str(path.relative_to(SITE)), wait_until="domcontentloaded")
                wide = tab.evaluate(WIDE)
                assert not wide, (path.name, wide)

        # A telephone.
        tab.set_viewport_size({"width": 375, "height": 700})
        for name in NARROW:
            tab.goto(address + name)
            wide = tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= 375, (name, wide)
        context.close()
    assert wrong == []
