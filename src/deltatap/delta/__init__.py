"""The Delta tables: their columns, their names in SQL, and when a row is final."""
