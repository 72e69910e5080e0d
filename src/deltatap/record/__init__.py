"""``deltatap record``: a proxy that passes a client's traffic through and writes every answer into a table."""
