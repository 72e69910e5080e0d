"""``deltatap watch``: a page that shows an active run. It only reads the run's state folder."""
