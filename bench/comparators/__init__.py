"""What Redrive is compared with: each what a careful person would write by hand, started as a process of its own.

Their settings come from the environment: BENCH_PORT, BENCH_SECRET, BENCH_DATABASE_URL, BENCH_AMQP_URL.
"""
