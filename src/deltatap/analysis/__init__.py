"""Metrics over captures."""
