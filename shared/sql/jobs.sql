-- Reads of control_plane.jobs. No statement in this file writes.
-- (project_id, id) names a job. Both columns stand in every look-up: ownership is part of the key, not a later check, and
-- an index that begins with the project serves as well as one on the id alone.
-- A look-up of rows is LATERAL, with a LIMIT: one look-up in the index for each row, whatever the planner estimates. A plan
-- is kept while the tables grow, and a join that was cheap on empty tables takes minutes on full ones.
-- An UPDATE, whose table cannot stand in a LATERAL, compares with an array of one: that is no condition to join by. An EXISTS
-- has OFFSET 0: without, all rows that it might find may be hashed for it.
-- redrive.job_number(...) and redrive.job_uuid(...) stand where an id of the relation meets one of the ledger, which are
-- UUIDs. Where the relation's ids are UUIDs, too, the loader leaves out the call, and keeps its argument, and it leaves out
-- the conditions before "only where ids are bigint": a bigint below 1 is no id, and its row is in no list.
-- Columns are cast to the contract's types, so that an enum, a varchar or a timestamp without time zone (UTC) can be read;
-- where a column has the type, the cast costs nothing. Texts are cut here, so that only what is shown is fetched. Numbers
-- that no integer holds are NULL, so that they refuse no statement: such a job is not shown.

-- fragment: shown_columns
-- What is shown of a job, with the first {length} characters of its error.
left(jobs.type::text, 1000) AS type, left(jobs.status::text, 100) AS status,
CASE WHEN redrive.fit_bigint(jobs.attempts, jobs.max_attempts) THEN coalesce(jobs.attempts, 0)::bigint END
    AS attempts,
CASE
    WHEN redrive.fit_bigint(jobs.attempts, jobs.max_attempts)
        THEN redrive.attempts_allowed(jobs.attempts, jobs.max_attempts, 0)::bigint
END AS max_attempts,
left(jobs.last_error::text, {length}) AS last_error,
jobs.scheduled_at::timestamptz, jobs.started_at::timestamptz, jobs.completed_at::timestamptz,
jobs.created_at::timestamptz

-- fragment: found_columns
-- The columns of a job that is looked up, with its version. $3: how many characters of an error to read.
{shown_columns length=$3},
CASE WHEN redrive.fit_bigint(jobs.attempts, jobs.max_attempts) THEN {version} END AS version

-- fragment: page_columns
-- What a page answers of each job: what `find` does, but for what only tags and Retry-After need, and its place.
redrive.job_uuid(j.id), $1::text, j.type, j.status, j.attempts, j.max_attempts, j.last_error,
j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.version,
queued.id, queued.requested_at, NULL::timestamptz,
j.place

-- fragment: listed_columns
-- The columns of a job in a list. Where no index has its order, as in most views, all of a project's jobs are sorted. As
-- random() makes the error volatile, it is computed after that, for the page alone; else a long one of each job is read.
jobs.id, {shown_columns length=2001+(random()<0)::int}, '' AS version, -- lists have no tags
{microseconds time=jobs.created_at::timestamptz} AS place

-- fragment: columns_without_time
-- The same of a job without a time: nothing but its id.
jobs.id, NULL::text, NULL::text, NULL::bigint, NULL::bigint, NULL::text,
NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, NULL::timestamptz, NULL::text, NULL::bigint

-- fragment: below_the_position
-- The jobs of a page that have a time, behind its other conditions.
AND jobs.id > 0 -- only where ids are bigint
AND (jobs.created_at, jobs.id) < (coalesce($4, 'infinity'::timestamptz), redrive.job_number($5::uuid))
AND jobs.created_at <= coalesce($6, 'infinity'::timestamptz)
AND jobs.created_at >= coalesce($3, '-infinity'::timestamptz)
AND ($2::text IS NULL OR jobs.type::text = $2)
ORDER BY jobs.created_at DESC, jobs.id DESC
LIMIT $7

-- fragment: queued_for_listed
-- The retry that is queued for a job of a page, and the order of the page.
{queued columns=r.id,r.requested_at project=$1 job=redrive.job_uuid(j.id)}
ORDER BY j.place DESC NULLS LAST, j.id DESC

-- name: find
-- The jobs behind (id, project) pairs; a pair that matches nothing is missing from the answer.
-- $1 uuid[] ids, $2 text[] project ids, same length; $3 int how many characters of an error to read
SELECT
    wanted.id, wanted.project_id, j.type, j.status, j.attempts, j.max_attempts, j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.version,
    queued.id, queued.requested_at, queued.redriven_at
FROM unnest($1::uuid[], $2::text[]) AS wanted (id, project_id)
JOIN LATERAL (
    SELECT
        {found_columns}
    FROM control_plane.jobs
    WHERE jobs.project_id = wanted.project_id AND jobs.id = redrive.job_number(wanted.id)
    LIMIT 1
) AS j ON true
{queued columns=r.id,r.requested_at,r.redriven_at project=wanted.project_id job=wanted.id};

-- name: find_with_payload
-- The same, with the payload's hash (16 hexadecimal digits) and its size in bytes, in one text, and the payload itself if
-- $4. A payload that is no JSON, or JSON that jsonb does not take, is an error.
-- $1 uuid[] ids, $2 text[] project ids, same length; $3 int how many characters of an error to read, $4 bool whether to
-- read the payload itself
SELECT
    wanted.id, wanted.project_id, j.type, j.status, j.attempts, j.max_attempts, j.last_error,
    j.scheduled_at, j.started_at, j.completed_at, j.created_at, j.version,
    queued.id, queued.requested_at, queued.redriven_at,
    lpad(to_hex(hashtextextended(stored.payload, 0)), 16, '0') || octet_length(stored.payload),
    CASE WHEN $4 AND (j.is_jsonb OR stored.payload::jsonb IS NOT NULL) THEN stored.payload END
FROM unnest($1::uuid[], $2::text[]) AS wanted (id, project_id)
JOIN LATERAL (
    SELECT
        {found_columns},
        pg_typeof(jobs.payload) = 'jsonb'::regtype AS is_jsonb, jobs.payload
    FROM control_plane.jobs
    WHERE jobs.project_id = wanted.project_id AND jobs.id = redrive.job_number(wanted.id)
    LIMIT 1
) AS j ON true
CROSS JOIN LATERAL (
    SELECT coalesce(j.payload::text, '{}') AS payload OFFSET 0 -- so that it is computed once
) AS stored
{queued columns=r.id,r.requested_at,r.redriven_at project=wanted.project_id job=wanted.id};

-- name: changed
-- Which of the jobs have changed since they were seen: their version, their payload or their queued retry, or the job is
-- gone; and the jobs whose row was updated, though nothing that is shown has changed. `mark` is the row's xmin: where it
-- is still the same, the texts of the row are not read again. A view has no xmin: then `xmin` is that of `relation`, NULL.
-- $1 uuid[] ids, $2 text[] project ids, $3 text[] versions seen, $4 uuid[] queued retries seen, NULL for none, $5 text[]
-- hashes of payloads seen, NULL where it is not read, $6 xid[] marks, NULL for none; same length
SELECT
    wanted.place, j.mark,
    queued.id IS DISTINCT FROM wanted.pending_retry_id
    OR (j.mark = wanted.mark) IS NOT TRUE
    AND (j.version IS DISTINCT FROM wanted.version OR j.payload_hash IS DISTINCT FROM wanted.payload_hash) AS is_changed
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::xid[])
    WITH ORDINALITY AS wanted (id, project_id, version, pending_retry_id, payload_hash, mark, place)
CROSS JOIN (
    SELECT NULL::xid AS xmin, relkind <> 'v' AS has_marks FROM pg_class WHERE oid = 'control_plane.jobs'::regclass
) AS relation
LEFT JOIN LATERAL (
    SELECT
        CASE WHEN relation.has_marks THEN xmin END AS mark,
        CASE
            WHEN relation.has_marks AND xmin = wanted.mark THEN NULL
            WHEN redrive.fit_bigint(jobs.attempts, jobs.max_attempts) THEN {version}
        END AS version,
        CASE
            WHEN wanted.payload_hash IS NULL OR (relation.has_marks AND xmin = wanted.mark) THEN NULL
            ELSE lpad(to_hex(hashtextextended(coalesce(jobs.payload::text, '{}'), 0)), 16, '0')
        END AS payload_hash
    FROM control_plane.jobs
    WHERE jobs.project_id = wanted.project_id AND jobs.id = redrive.job_number(wanted.id)
    LIMIT 1
) AS j ON true
{queued columns=r.id project=wanted.project_id job=wanted.id}
WHERE
    queued.id IS DISTINCT FROM wanted.pending_retry_id
    OR (j.mark = wanted.mark) IS NOT TRUE
    AND (
        j.mark IS NOT NULL
        OR j.version IS DISTINCT FROM wanted.version
        OR j.payload_hash IS DISTINCT FROM wanted.payload_hash
    );

-- name: page
-- A page of a project's jobs, newest first; jobs without a time come last, with nothing but their id. The comparison with
-- a position is always there, because it bounds the index scan. `place` is the time in microseconds since 2000, as the
-- server has it, because no datetime of Python holds infinity. UNION ALL reads its second part only where the first has
-- not filled the page.
-- $1 text project id, $2 text type or NULL, $3 timestamptz created at or after, $4 timestamptz or NULL and $5 uuid the
-- position below which the page begins, $6 timestamptz created at or before, $7 int how many, $8 uuid below which those
-- without a time begin
SELECT
    {page_columns}
FROM (
    (
        SELECT
            {listed_columns}
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1
            {below_the_position}
    )
    UNION ALL
    (
        SELECT
            {columns_without_time}
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1 AND jobs.created_at IS NULL
            AND jobs.id > 0 -- only where ids are bigint
            AND jobs.id < redrive.job_number($8::uuid)
            AND $3::timestamptz IS NULL AND $6::timestamptz IS NULL
            AND ($2::text IS NULL OR jobs.type::text = $2)
        ORDER BY jobs.id DESC
        LIMIT $7
    )
    LIMIT $7
) AS j
{queued_for_listed};

-- name: page_of_status
-- The same of jobs with one status. It is a statement of its own, because a plan for both could not use an index on status.
-- $1 to $7 as above, $8 text status, $9 uuid below which those without a time begin
SELECT
    {page_columns}
FROM (
    (
        SELECT
            {listed_columns}
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1 AND jobs.status::text = $8
            {below_the_position}
    )
    UNION ALL
    (
        SELECT
            {columns_without_time}
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1 AND jobs.created_at IS NULL AND jobs.status::text = $8
            AND jobs.id > 0 -- only where ids are bigint
            AND jobs.id < redrive.job_number($9::uuid)
            AND $3::timestamptz IS NULL AND $6::timestamptz IS NULL
            AND ($2::text IS NULL OR jobs.type::text = $2)
        ORDER BY jobs.id DESC
        LIMIT $7
    )
    LIMIT $7
) AS j
{queued_for_listed};

-- name: positions
-- Only the ids and positions of such a page: where a row of it cannot be read, the others are looked up one by one.
-- $1 to $8 as for `page`, $9 text status or NULL
SELECT redrive.job_uuid(j.id) AS id, j.place
FROM (
    (
        SELECT jobs.id, {microseconds time=jobs.created_at::timestamptz} AS place
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1 AND ($9::text IS NULL OR jobs.status::text = $9)
            {below_the_position}
    )
    UNION ALL
    (
        SELECT jobs.id, NULL::bigint
        FROM control_plane.jobs
        WHERE
            jobs.project_id = $1 AND jobs.created_at IS NULL AND ($9::text IS NULL OR jobs.status::text = $9)
            AND jobs.id > 0 -- only where ids are bigint
            AND jobs.id < redrive.job_number($8::uuid)
            AND $3::timestamptz IS NULL AND $6::timestamptz IS NULL
            AND ($2::text IS NULL OR jobs.type::text = $2)
        ORDER BY jobs.id DESC
        LIMIT $7
    )
    LIMIT $7
) AS j
ORDER BY j.place DESC NULLS LAST, j.id DESC;
