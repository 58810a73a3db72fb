-- Reading control_plane.jobs. Nothing in this file writes.
-- (project_id, id) names a job: both stand in every look-up, so that ownership is part of the key, not a later check,
-- and an index that begins with the project serves as well as one on the id alone.
-- Rows that are looked up are LATERAL, with a LIMIT: one look-up by its index for each, whatever the planner believes.
-- A plan is kept while the tables grow, and a join that was cheap when they were empty takes minutes when they are not.

-- name: find_jobs
-- The jobs behind (id, project) pairs; a pair that matches nothing is missing from the answer.
-- $1 uuid[] ids, $2 text[] project ids, $3 bool[] whether to read the payload; same length
SELECT
    j.id, j.project_id, j.type, j.status, coalesce(j.attempts, 0), coalesce(j.max_attempts, 3), j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.version,
    queued.id, queued.requested_at,
    wanted.with_payload, CASE WHEN wanted.with_payload THEN coalesce(j.payload, '{}') END
FROM unnest($1::uuid[], $2::text[], $3::bool[]) AS wanted (id, project_id, with_payload)
JOIN LATERAL (
    SELECT
        jobs.id, jobs.project_id, jobs.type, jobs.status, jobs.attempts, jobs.max_attempts, jobs.last_error,
        jobs.scheduled_at, jobs.started_at, jobs.completed_at, jobs.created_at, jobs.xmin::text AS version, jobs.payload
    FROM control_plane.jobs
    WHERE jobs.project_id = wanted.project_id AND jobs.id = wanted.id
    LIMIT 1
) AS j ON true
LEFT JOIN LATERAL (
    SELECT r.id, r.requested_at FROM redrive.retry_requests AS r
    WHERE r.project_id = wanted.project_id AND r.job_id = wanted.id AND r.state = 'queued'
    LIMIT 1
) AS queued ON true;

-- name: changed_jobs
-- Which of the jobs are no longer as seen: another version, another queued retry, or gone.
-- $1 uuid[] ids, $2 text[] project ids, $3 text[] versions seen, $4 uuid[] queued retries seen, NULL for none; same length
SELECT wanted.id, wanted.project_id
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[]) AS wanted (id, project_id, version, pending_retry_id)
LEFT JOIN LATERAL (
    SELECT jobs.xmin::text AS version FROM control_plane.jobs
    WHERE jobs.project_id = wanted.project_id AND jobs.id = wanted.id
    LIMIT 1
) AS j ON true
LEFT JOIN LATERAL (
    SELECT r.id FROM redrive.retry_requests AS r
    WHERE r.project_id = wanted.project_id AND r.job_id = wanted.id AND r.state = 'queued'
    LIMIT 1
) AS queued ON true
WHERE j.version IS DISTINCT FROM wanted.version OR queued.id IS DISTINCT FROM wanted.pending_retry_id;

-- name: list_jobs
-- A page of a project's jobs, newest first. The place to start from is always there, so that it bounds the index scan.
-- $1 text project id, $2 text type or NULL, $3 timestamptz created after, $4 timestamptz and $5 uuid the place below
-- which the page begins, $6 timestamptz created before, $7 int how many
SELECT
    j.id, j.project_id, j.type, j.status, coalesce(j.attempts, 0), coalesce(j.max_attempts, 3), j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.xmin::text,
    queued.id, queued.requested_at,
    false, NULL::jsonb
FROM control_plane.jobs AS j
LEFT JOIN LATERAL (
    SELECT r.id, r.requested_at FROM redrive.retry_requests AS r
    WHERE r.project_id = j.project_id AND r.job_id = j.id AND r.state = 'queued'
    LIMIT 1
) AS queued ON true
WHERE
    j.project_id = $1
    AND (j.created_at, j.id) < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND j.created_at < coalesce($6, 'infinity'::timestamptz)
    AND j.created_at > coalesce($3, '-infinity'::timestamptz)
    AND ($2::text IS NULL OR j.type = $2)
ORDER BY j.created_at DESC, j.id DESC
LIMIT $7;

-- name: list_jobs_of_status
-- The same of those with one status: a statement of its own, as a plan that serves both could not use an index on it.
-- $1 to $7 as above, $8 text status
SELECT
    j.id, j.project_id, j.type, j.status, coalesce(j.attempts, 0), coalesce(j.max_attempts, 3), j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.xmin::text,
    queued.id, queued.requested_at,
    false, NULL::jsonb
FROM control_plane.jobs AS j
LEFT JOIN LATERAL (
    SELECT r.id, r.requested_at FROM redrive.retry_requests AS r
    WHERE r.project_id = j.project_id AND r.job_id = j.id AND r.state = 'queued'
    LIMIT 1
) AS queued ON true
WHERE
    j.project_id = $1 AND j.status = $8
    AND (j.created_at, j.id) < (coalesce($4, 'infinity'::timestamptz), coalesce($5, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
    AND j.created_at < coalesce($6, 'infinity'::timestamptz)
    AND j.created_at > coalesce($3, '-infinity'::timestamptz)
    AND ($2::text IS NULL OR j.type = $2)
ORDER BY j.created_at DESC, j.id DESC
LIMIT $7;

-- name: job_stats
-- For each status, how many of a project's jobs have it, counted from the oldest and not beyond $3, and the oldest.
-- $1 text project id, $2 text type or NULL, $3 int where counting stops
SELECT s.status, counted.jobs, counted.oldest_at, counted.exhausted
FROM unnest(ARRAY['pending', 'running', 'failed', 'completed']) AS s (status)
CROSS JOIN LATERAL (
    SELECT count(*) AS jobs, min(created_at) AS oldest_at, count(*) FILTER (WHERE used_up) AS exhausted
    FROM (
        SELECT j.created_at, coalesce(j.attempts, 0) >= coalesce(j.max_attempts, 3) AS used_up
        FROM control_plane.jobs AS j
        WHERE j.project_id = $1 AND j.status = s.status AND ($2::text IS NULL OR j.type = $2)
        ORDER BY j.created_at, j.id
        LIMIT $3
    ) AS oldest
) AS counted;
