"""One module per API, each with everything in which it differs from the others; `registry.py` lists them."""
