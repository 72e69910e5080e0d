"""``deltatap watch``: a page that shows a run as it goes. It only reads the run's state folder."""
