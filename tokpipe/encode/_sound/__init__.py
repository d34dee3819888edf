"""Families of sound models, behind ``hf_audio`` and ``torchaudio_bundles``; speech detection."""
