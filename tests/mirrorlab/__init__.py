"""Mirrors that misbehave by name, on loopback, for tests."""
