"""What the storage forms share: a cache as plain arrays, many as one set, files of arrays."""
