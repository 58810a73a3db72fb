-- migrate:up
-- What was published and is not settled, the longest published first: whether a message may be a dead letter, and what
-- must have been lost. Without it both read all that waits, published or not. That it names the published ones keeps
-- everybody else from going along it, and what is settled before it is marked never enters it.
CREATE INDEX retry_requests_published_idx
    ON redrive.retry_requests ((batch_id IS NOT NULL), published_at)
    WHERE state = 'queued' AND processed_at IS NULL AND published_at IS NOT NULL;

-- migrate:down
DROP INDEX redrive.retry_requests_published_idx;
