"""One page that shows runs, in a single file: text, tables and SVG, drawn here."""
