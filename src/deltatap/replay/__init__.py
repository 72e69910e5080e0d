"""Serves captured answers again, as an endpoint of the API that they were captured from."""
