"""The files of long runs: a folder that survives a kill, which runs may go on in it, and rows as lines of JSON."""
