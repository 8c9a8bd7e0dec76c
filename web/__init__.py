"""A generator as one HTML page that runs it: page/ holds the page's parts, export.py fills in the weights."""
