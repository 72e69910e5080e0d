"""`deltatap reconcile`: holds the costs of captures against the bill of a provider or a gateway."""
