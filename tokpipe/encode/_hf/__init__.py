"""Families of vision models in transformers, behind ``hf_vision``."""
