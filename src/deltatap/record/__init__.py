"""``deltatap record``: a proxy that forwards a client's traffic and writes every answer to a table."""
