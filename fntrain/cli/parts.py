"""Where a run's time went, and how each part of it ended, for `fntrain inspect`."""

from pathlib import Path
from typing import Any

from .table import Page


def show_parts(page: Page, run: Path, config: dict[str, Any]) -> None:
    """Add what is known of them."""
    from ..run.goodput import goodput_of
    from ..run.parts import parts_in

    parts = parts_in(run, config)
    goodput = goodput_of(parts)
    if goodput is not None:
        page.line(f"goodput {goodput}")
    rows = []
    for part in parts:
        lost = str(part.get("lost_steps", ""))
        rows.append(
            (part.get("started", ""), f"{part['from']} to {part.get('to', '?')}", part["ended"], lost)
        )
    if rows:
        page.table("parts", ("started", "steps", "ended", "lost"), rows, "lllr")
