"""HTTP in, JSON out: job status, retry requests, and what became of them."""
