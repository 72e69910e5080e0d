"""Benchmarks. They assert nothing: each prints its figures next to a floor that the same run measured."""
