"""Pipelines of the diffusers library as a backend: loading them, calling them, and what they are called with."""
