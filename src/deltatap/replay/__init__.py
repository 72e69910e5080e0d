"""Captured answers served again, as an OpenAI-compatible endpoint."""
