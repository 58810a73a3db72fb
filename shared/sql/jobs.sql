-- Reading control_plane.jobs. Nothing in this file writes.

-- name: find_jobs
-- The jobs behind (id, project) pairs; a pair that matches nothing is missing from the answer.
-- $1 uuid[] ids, $2 text[] project ids, $3 bool[] whether to read the payload; same length
SELECT
    j.id, j.project_id, j.type, j.status, coalesce(j.attempts, 0), coalesce(j.max_attempts, 3), j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.xmin::text,
    r.id, r.requested_at,
    wanted.with_payload, CASE WHEN wanted.with_payload THEN coalesce(j.payload, '{}') END
FROM unnest($1::uuid[], $2::text[], $3::bool[]) AS wanted (id, project_id, with_payload)
JOIN control_plane.jobs AS j USING (id, project_id) -- ownership is part of the key, not a later check
LEFT JOIN redrive.retry_requests AS r ON r.job_id = j.id AND r.project_id = j.project_id AND r.state = 'queued';

-- name: list_jobs
-- A page of a project's jobs, newest first.
-- $1 text project id, $2 text status or NULL for all, $3 int how many
SELECT
    j.id, j.project_id, j.type, j.status, coalesce(j.attempts, 0), coalesce(j.max_attempts, 3), j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.xmin::text,
    r.id, r.requested_at,
    false, NULL::jsonb
FROM control_plane.jobs AS j
LEFT JOIN redrive.retry_requests AS r ON r.job_id = j.id AND r.project_id = j.project_id AND r.state = 'queued'
WHERE j.project_id = $1 AND ($2::text IS NULL OR j.status = $2)
ORDER BY j.created_at DESC, j.id DESC
LIMIT $3;
