"""The `redrive` command.

main.py     the commands that start programs and set things up
operate/    the operators' commands: jobs, retries, batches, dead letters
local/      `redrive up`: all of Redrive on this machine, with a PostgreSQL of its own and demo jobs
checking/   `redrive check`: whether all that Redrive needs is in place
"""
