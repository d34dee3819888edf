"""What tests of tokpipe and of its plug-ins share: synthetic media with known content."""
