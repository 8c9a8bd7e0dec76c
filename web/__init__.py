"""Export of generators to a self-contained HTML page: page/ has the page's parts, export.py inserts the weights."""
