"""The `redrive` command: starts the programs, and the whole of them on one machine."""
