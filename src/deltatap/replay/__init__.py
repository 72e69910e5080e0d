"""Serves captured answers again as an OpenAI-compatible endpoint."""
