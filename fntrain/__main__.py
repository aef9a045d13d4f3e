"""`python -m fntrain` is `fntrain`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
