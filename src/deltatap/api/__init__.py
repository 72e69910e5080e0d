"""What each API's requests and answers look like, one module an API; ``registry.py`` lists them."""
