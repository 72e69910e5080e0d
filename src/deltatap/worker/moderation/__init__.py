"""Checks of the text of an answer, while it arrives and at its end."""
