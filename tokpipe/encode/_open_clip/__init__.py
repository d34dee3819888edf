"""Names, trunks and towers of open_clip, behind ``open_clip``."""
