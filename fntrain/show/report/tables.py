"""Tables as HTML: of text, and of counts that are shaded."""

import html
from collections.abc import Sequence


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[int] = (), caption: str = ""
) -> str:
    """A table whose first column heads its rows.

    Args:
      header: what stands above the columns.
      rows: text, by row.
      marked: the indices of rows to set off.
      caption: what the table is, for who hears it.

    Examples:
      >>> "<td>&lt;0.5</td>" in table(["step", "loss"], [["1", "<0.5"]])
      True
    """
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join(
        f"<tr{' class=marked' if i in marked else ''}>"
        f'<th scope="row">{html.escape(row[0])}</th>'
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for i, row in enumerate(rows)
    )
    said = f"<caption class='hidden'>{html.escape(caption)}</caption>" if caption else ""
    # What is wider than the page is moved inside its own box, by the keyboard too.
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="{html.escape(caption or "table")}"><table>{said}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def matrix(counts: Sequence[Sequence[float]], title: str, note: str = "") -> str:
    """A confusion matrix: a row a true class, a column a predicted one, each row shaded by its own total.

    Args:
      counts: `[C, C]`.
      title: what it is of.
      note: a sentence below the title.
    """
    classes = range(len(counts))
    head = "".join(f'<th scope="col">{c}</th>' for c in classes)
    rows = ""
    for c in classes:
        total = sum(counts[c]) or 1
        cells = "".join(
            f'<td class="{"hit" if c == p else "miss"}{" deep" if n / total > 0.5 else ""}" '
            f'style="--part:{round(100 * n / total)}%">{n:g}</td>'
            for p, n in enumerate(counts[c])
        )
        rows += f'<tr><th scope="row">{c}</th>{cells}</tr>'
    name = html.escape(title)
    return (
        f'<figure class="matrix"><figcaption><h3>{name}</h3><p>{html.escape(note)}</p></figcaption>'
        f'<div class="wide" tabindex="0" role="group" aria-label="{name}"><table>'
        f"<caption class='hidden'>{name}: rows are true classes, columns predicted ones</caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"</figure>"
    )


def bars(parts: Sequence[tuple[str, float, str]], title: str) -> str:
    """Parts of a whole, a bar each, with what each is and how much.

    Args:
      parts: name, which part of the whole it is from 0 to 1, and its value in words.
      title: what the whole is.
    """
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td class="bar"><svg viewBox="0 0 100 8" '
        f'preserveAspectRatio="none" aria-hidden="true"><rect class="c0" width="{100 * min(max(part, 0), 1):.2f}" '
        f'height="8"/></svg></td><td>{100 * part:.1f}&nbsp;%</td><td>{html.escape(said)}</td></tr>'
        for name, part, said in parts
    )
    name = html.escape(title)
    return (
        f'<figure class="bars"><figcaption><h3>{name}</h3></figcaption><div class="wide" tabindex="0" role="group" '
        f'aria-label="{name}"><table><tbody>{rows}</tbody></table></div></figure>'
    )
