"""Messages in, rows out: retry requests are applied to failed jobs here, and nowhere else."""
