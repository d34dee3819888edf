"""Frames of a cache with their times, and the messages that carry them."""
