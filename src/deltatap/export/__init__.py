"""Writes captures as OpenTelemetry spans."""
