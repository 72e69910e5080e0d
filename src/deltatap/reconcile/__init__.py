"""`deltatap reconcile`: compares the costs of captures with the bill of a provider or a gateway."""
