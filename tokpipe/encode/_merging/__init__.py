"""Merging inside encoders: rules between the attention and the MLP of a block."""
