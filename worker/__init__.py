"""The worker: takes retry requests from RabbitMQ, or from the ledger, and applies them to failed jobs."""
