"""Commands for now and then: python -m tools.NAME."""
