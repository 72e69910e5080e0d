"""The code that runs in a Spark worker: one attempt at one part of the plan."""
