"""The command line of tokpipe: parse, call the library, render."""
