"""`redrive jobs`, `retry`, `retries`, `batches`, `failures`, `dead` and `prune`: what operators type."""
