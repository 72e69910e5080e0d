"""A local Spark session and its Python workers."""
