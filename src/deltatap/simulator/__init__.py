"""A simulated server for every API. It injects faults on demand, and records what it sent and when."""
