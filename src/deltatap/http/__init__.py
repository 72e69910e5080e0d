"""One call over HTTP: client, transport, connection, parser, time-outs, credentials and outcomes."""
