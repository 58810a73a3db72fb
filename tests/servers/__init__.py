"""Servers for tests: one PostgreSQL and one RabbitMQ that a run shares, and private ones that a fault test may break.

Where they come from, in order: REDRIVE_TEST_DATABASE_URL and REDRIVE_TEST_AMQP_URL (shared ones only), a Docker engine
that answers and has the images or can pull them, programs on this machine. REDRIVE_TEST_SERVERS=docker or local chooses
between the last two. Where none of these is there the run fails with one sentence; it never skips.

Nothing is imported here, because the reaper, a process of its own, starts from this package.
"""
