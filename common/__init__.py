"""What every part may use: one-line errors, command-line arguments, and files that are written whole or not at all."""
