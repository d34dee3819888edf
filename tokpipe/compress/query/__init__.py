"""Reducers that follow a question."""
