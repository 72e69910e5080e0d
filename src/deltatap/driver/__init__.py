"""What runs on the driver: one run from start to end."""
