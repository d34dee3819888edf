"""Reducers, one file each; the survey's taxonomy is the folder tree."""
