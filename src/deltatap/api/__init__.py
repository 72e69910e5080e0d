"""One module per API, with everything that is specific to the API. `registry.py` lists the APIs."""
