"""Reducers that reshape: selection of frames, pooling, transforms."""
