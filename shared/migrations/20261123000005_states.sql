-- migrate:up
-- The audit trail of a project, by state. All but the state that most requests end in: what is applied costs it nothing
-- more, and is found along the whole trail. That it speaks of a time, too, which its only reader repeats, keeps look-ups
-- of something queued from going along it.
CREATE INDEX retry_requests_state_idx ON redrive.retry_requests (project_id, state, requested_at DESC, id DESC)
    WHERE state <> 'applied' AND requested_at < 'infinity';

-- migrate:down
DROP INDEX redrive.retry_requests_state_idx;
