"""Serves captured answers again, as an endpoint."""
