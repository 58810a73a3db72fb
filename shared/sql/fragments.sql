-- What statements of several files have in common. `{name word=value}` in a statement is replaced by the fragment of that
-- name, and `{word}` in the fragment by the value.

-- fragment: queued
-- A job's queued retry: a job has one at most. {columns} of the retry `r`, for the job {job} of {project}.
LEFT JOIN LATERAL (
    SELECT {columns} FROM redrive.retry_requests AS r
    WHERE r.project_id = {project} AND r.job_id = {job} AND r.state = 'queued'
    LIMIT 1
) AS queued ON true

-- fragment: retried
-- How often the job {job} of project $1 was retried within {seconds}, up to a thousand times. Where {counted} is NULL,
-- nothing is read.
LEFT JOIN LATERAL (
    SELECT count(*) AS times
    FROM (
        SELECT r.state, r.processed_at FROM redrive.retry_requests AS r
        WHERE {counted}::int IS NOT NULL AND r.project_id = $1 AND r.job_id = {job}
        ORDER BY r.requested_at DESC
        LIMIT 1000
    ) AS asked
    WHERE asked.state = 'applied' AND asked.processed_at > now() - {seconds}::int * interval '1 second'
) AS retried ON true

-- fragment: version
-- The version of a row of `jobs`.
redrive.job_version(
    jobs.type::text, jobs.status::text, jobs.attempts::bigint, jobs.max_attempts::bigint, jobs.last_error::text,
    jobs.scheduled_at::timestamptz, jobs.started_at::timestamptz, jobs.completed_at::timestamptz,
    jobs.created_at::timestamptz
)

-- fragment: microseconds
-- A time in microseconds since 2000, as the server has it: no datetime of Python holds infinity.
('x' || encode(timestamptz_send({time}), 'hex'))::bit(64)::bigint
