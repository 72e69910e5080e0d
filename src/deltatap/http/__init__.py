"""One call over HTTP: client, transport, connection, parser, timeouts, credentials and outcomes."""
