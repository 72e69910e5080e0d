"""One call over HTTP: client, transport, connection, credentials, and what an answer's status means."""
