"""Which frames and audio spans to encode: one file each."""
