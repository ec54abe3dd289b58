"""Engines: one file each, none imports another; one that wraps another receives it."""
