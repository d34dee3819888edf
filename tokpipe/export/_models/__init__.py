"""Kinds of models of transformers and how they take tokens in place of pictures and sound."""
