"""The systems themselves: each module does, through its library, what the tests ask of that system.

    python -m tests.adapters.drivers SYSTEM install       make its tables in the database of DATABASE_URL, and enqueue
                                                          the JSON array of jobs on stdin; their ids on stdout
    python -m tests.adapters.drivers SYSTEM work MODE     run a worker until it is killed; MODE: fail, succeed
    python -m tests.adapters.drivers SYSTEM prune         its own maintenance, once

A job is `{"do": "fail" | "work" | "hang", "delay_s": 0}`, of the queue p1. A worker in mode `fail` does what the job
says; in mode `succeed` every job works. It prints the line `up` when it starts to work.
"""
