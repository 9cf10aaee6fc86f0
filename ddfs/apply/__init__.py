"""Declarations in files: what they say, how the catalogue differs, and the way back. Pure."""
