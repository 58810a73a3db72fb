"""`redrive up`: PostgreSQL, the API, workers and demo jobs on this machine, in one process."""
