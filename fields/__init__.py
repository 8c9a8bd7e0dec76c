"""What a field is, for those that use one and those that implement one: ``siren`` and ``triplane``."""
