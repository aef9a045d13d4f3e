"""The page around the sections: its head, its style and its script, all in one file, and nothing from a network."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from .files import text_of


class Section(NamedTuple):
    """A part of the page: a heading, and HTML below it."""

    title: str
    body: str


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document.

    The browser is told to fetch nothing, by a policy in the head, so that the page is what is in it.

    Args:
      title: its heading.
      lead: a sentence below it.
      sections: what follows, with links to each.

    Examples:
      >>> text = page("one run", "done", [Section("Curves", "<p>none</p>")])
      >>> text.startswith("<!doctype html>"), "http" in text.replace("http-equiv", "")
      (True, False)
    """
    ids = [f"s{i}" for i in range(len(sections))]
    links = "".join(f'<li><a href="#{i}">{html.escape(s.title)}</a></li>' for i, s in zip(ids, sections))
    body = "".join(
        f'<section id="{i}" aria-labelledby="{i}h"><h2 id="{i}h">{html.escape(s.title)}</h2>{s.body}</section>'
        for i, s in zip(ids, sections)
    )
    style, script = text_of("chart.css") + text_of("report.css"), text_of("report.js")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f'<a class="skip" href="#main">To the content</a>'
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>'
        f'<main id="main">{body}</main><script>{script}</script></body></html>\n'
    )
