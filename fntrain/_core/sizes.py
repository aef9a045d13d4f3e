"""Numbers of bytes as people read them."""

import math


def bytes_text(n: float) -> str:
    """Write a number of bytes: `8.1 kB`.

    Examples:
      >>> [bytes_text(n) for n in (12, 8100, 3.2e9)]
      ['12 B', '8.1 kB', '3.2 GB']
    """
    if n < 1000:
        return f"{n:.0f} B"
    power = min(int(math.log10(n)) // 3, 4)
    return f"{n / 1000**power:.1f} {'_kMGT'[power]}B"
