"""The files of long runs: a folder that survives a kill, and rows as lines of JSON."""
