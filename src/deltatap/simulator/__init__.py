"""An OpenAI-compatible server that answers, injects faults on demand, and records what it sent and when."""
