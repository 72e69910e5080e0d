"""An OpenAI-compatible server that behaves, misbehaves on demand, and knows what it sent and when."""
