"""Reducers that follow a score or an attention."""
