"""Frames and audio in, tokens out: one file per family."""
