-- A demo project's jobs, and a stand-in for the control plane that runs them. For `redrive up` only: a real control
-- plane owns its table, and no other program moves its jobs.
--
-- A payload may say how its job goes: {"demo": {"takes_s": 3600}} runs so long, {"demo": {"error": "..."}} always fails so.

-- name: seed
-- Jobs in all four states, where the project has none yet: forty of all kinds, and fourteen that failed of one cause,
-- which are one group of failures. The newest failed job is none of these.
-- $1 text project id
INSERT INTO control_plane.jobs (
    project_id, type, payload, status, attempts, max_attempts, last_error,
    created_at, scheduled_at, started_at, completed_at
)
SELECT
    $1, type, payload::jsonb, status, attempts, max_attempts, error,
    now() - age,
    CASE WHEN status = 'pending' THEN now() + wait ELSE now() - age END,
    CASE WHEN status <> 'pending' THEN now() - age + (attempts - 1) * interval '40 s' + interval '1 s' END,
    CASE WHEN status IN ('failed', 'completed') THEN now() - age + attempts * interval '40 s' END
FROM (
    VALUES
    -- failed, with attempts left: a retry helps
    ('invoice.render', 'failed', 1, 3, 'TimeoutError: renderer-2 did not answer within 30 s', interval '4 min', NULL::interval, '{"invoice": "INV-20417", "customer": "c_8812", "pages": 3}'),
    ('email.send', 'failed', 1, 5, 'SMTPServerDisconnected: Connection unexpectedly closed', interval '9 min', NULL, '{"to": "ana@example.com", "template": "receipt", "locale": "pt-BR"}'),
    ('webhook.deliver', 'failed', 2, 5, 'HTTPError: 503 Service Unavailable from https://hooks.example.com/orders', interval '14 min', NULL, '{"event": "order.paid", "order": 88213}'),
    ('webhook.deliver', 'failed', 3, 5, 'HTTPError: 502 Bad Gateway from https://hooks.example.com/orders', interval '22 min', NULL, '{"event": "order.shipped", "order": 88197}'),
    ('payment.capture', 'failed', 1, 3, 'GatewayTimeout: acquirer gave no answer after 20 s', interval '31 min', NULL, '{"payment": "pay_7Hq2", "amount": 12990, "currency": "EUR"}'),
    ('report.export', 'failed', 1, 3, 'OperationalError: could not connect to server: Connection refused', interval '47 min', NULL, '{"report": "monthly-revenue", "month": "2026-10", "format": "xlsx"}'),
    ('image.resize', 'failed', 2, 3, 'MemoryError: cannot allocate 512 MiB', interval '68 min', NULL, '{"image": "s3://media/u/5521.png", "widths": [320, 640, 1280]}'),
    ('search.reindex', 'failed', 1, 3, 'ConnectionResetError: [Errno 104] Connection reset by peer', interval '2 h', NULL, '{"index": "products", "shard": 4}'),
    ('email.send', 'failed', 2, 5, 'SMTPResponseException: 421 Too many concurrent connections', interval '3 h', NULL, '{"to": "li.wei@example.com", "template": "password-reset", "locale": "zh-CN"}'),
    ('data.import', 'failed', 1, 3, 'UnicodeDecodeError: ''utf-8'' codec can''t decode byte 0xe9 in position 1042', interval '5 h', NULL, '{"file": "s3://inbox/suppliers-latin1.csv", "demo": {"error": "UnicodeDecodeError: ''utf-8'' codec can''t decode byte 0xe9 in position 1042"}}'),
    -- failed, attempts used up
    ('payment.capture', 'failed', 3, 3, 'CardDeclined: insufficient_funds', interval '1 h', NULL, '{"payment": "pay_6Zk9", "amount": 4900, "currency": "USD"}'),
    ('webhook.deliver', 'failed', 5, 5, 'HTTPError: 410 Gone from https://old.example.net/callback', interval '6 h', NULL, '{"event": "order.paid", "order": 87760}'),
    ('data.import', 'failed', 3, 3, 'ValueError: row 211: "31/02/2026" is not a date', interval '9 h', NULL, '{"file": "s3://inbox/contracts.csv", "rows": 840}'),
    ('invoice.render', 'failed', 3, 3, 'TemplateError: unknown field "vat_id" in layout "fr-2026"', interval '20 h', NULL, '{"invoice": "INV-20188", "customer": "c_1190", "pages": 1}'),
    ('report.export', 'failed', 1, 1, 'QueryCanceled: canceling statement due to statement timeout', interval '26 h', NULL, '{"report": "churn", "month": "2026-09", "format": "csv"}'),
    -- running, for a good while
    ('search.reindex', 'running', 1, 3, NULL, interval '3 min', NULL, '{"index": "customers", "demo": {"takes_s": 3600}}'),
    ('report.export', 'running', 1, 3, NULL, interval '6 min', NULL, '{"report": "annual", "year": 2026, "format": "pdf", "demo": {"takes_s": 5400}}'),
    ('data.import', 'running', 2, 3, NULL, interval '11 min', NULL, '{"file": "s3://inbox/catalogue-full.csv", "rows": 2400000, "demo": {"takes_s": 7200}}'),
    ('video.transcode', 'running', 1, 3, NULL, interval '19 min', NULL, '{"video": "v_3371", "preset": "1080p", "demo": {"takes_s": 9000}}'),
    -- pending: some due soon, some later
    ('email.send', 'pending', 0, 5, NULL, interval '10 s', interval '5 s', '{"to": "sam@example.com", "template": "welcome", "locale": "en"}'),
    ('image.resize', 'pending', 0, 3, NULL, interval '8 s', interval '20 s', '{"image": "s3://media/u/5530.png", "widths": [320, 640]}'),
    ('invoice.render', 'pending', 0, 3, NULL, interval '6 s', interval '1 min', '{"invoice": "INV-20421", "customer": "c_0417", "pages": 2}'),
    ('webhook.deliver', 'pending', 1, 5, NULL, interval '2 min', interval '4 min', '{"event": "order.refunded", "order": 88010}'),
    ('email.send', 'pending', 0, 5, NULL, interval '1 min', interval '30 min', '{"to": "ola@example.com", "template": "trial-ends", "locale": "no"}'),
    ('report.export', 'pending', 0, 3, NULL, interval '12 min', interval '3 h', '{"report": "daily-orders", "format": "csv"}'),
    ('search.reindex', 'pending', 0, 3, NULL, interval '12 min', interval '8 h', '{"index": "products", "shard": 1}'),
    ('data.import', 'pending', 0, 3, NULL, interval '25 min', interval '1 day', '{"file": "s3://inbox/prices.csv", "rows": 5200}'),
    -- completed
    ('email.send', 'completed', 1, 5, NULL, interval '5 min', NULL, '{"to": "kim@example.com", "template": "receipt", "locale": "en"}'),
    ('email.send', 'completed', 2, 5, NULL, interval '16 min', NULL, '{"to": "noor@example.com", "template": "receipt", "locale": "nl"}'),
    ('webhook.deliver', 'completed', 3, 5, NULL, interval '24 min', NULL, '{"event": "order.paid", "order": 88190}'),
    ('payment.capture', 'completed', 1, 3, NULL, interval '33 min', NULL, '{"payment": "pay_7Gw1", "amount": 2500, "currency": "GBP"}'),
    ('payment.capture', 'completed', 2, 3, NULL, interval '52 min', NULL, '{"payment": "pay_7Fa8", "amount": 79900, "currency": "EUR"}'),
    ('invoice.render', 'completed', 1, 3, NULL, interval '58 min', NULL, '{"invoice": "INV-20410", "customer": "c_8801", "pages": 1}'),
    ('image.resize', 'completed', 1, 3, NULL, interval '75 min', NULL, '{"image": "s3://media/u/5498.png", "widths": [320, 640, 1280]}'),
    ('image.resize', 'completed', 1, 3, NULL, interval '90 min', NULL, '{"image": "s3://media/u/5497.png", "widths": [320]}'),
    ('report.export', 'completed', 1, 3, NULL, interval '4 h', NULL, '{"report": "daily-orders", "format": "csv"}'),
    ('search.reindex', 'completed', 2, 3, NULL, interval '7 h', NULL, '{"index": "products", "shard": 2}'),
    ('data.import', 'completed', 1, 3, NULL, interval '11 h', NULL, '{"file": "s3://inbox/stock.csv", "rows": 1310}'),
    ('video.transcode', 'completed', 1, 3, NULL, interval '18 h', NULL, '{"video": "v_3302", "preset": "720p"}'),
    ('invoice.render', 'completed', 1, 3, NULL, interval '30 h', NULL, '{"invoice": "INV-20102", "customer": "c_0088", "pages": 12}')
    UNION ALL
    SELECT
        'sms.send', 'failed', 1, 3, format('HTTPError: 503 Service Unavailable from https://sms.example.com/v1/messages/%s', 55210 + n),
        interval '34 min' + n * interval '7 s', NULL, format('{"to": "+4930901820%s", "template": "code", "message": %s}', n, 55210 + n)
    FROM generate_series(10, 23) AS n
) AS demo (type, status, attempts, max_attempts, error, age, wait, payload)
WHERE NOT EXISTS (SELECT FROM control_plane.jobs WHERE project_id = $1)
RETURNING id;

-- name: seed_history
-- The retries that brought settled jobs to their second and later attempts, as the ledger would have them.
-- $1 uuid[] the jobs, $2 text the actor, $3 uuid[] ids for the requests, at least as many, $4 text project id
WITH retried AS (
    SELECT id, project_id, attempts, max_attempts, started_at, completed_at, row_number() OVER (ORDER BY started_at, id) AS n
    FROM control_plane.jobs
    WHERE project_id = $4 AND id = ANY ($1::uuid[]) AND status IN ('failed', 'completed') AND attempts > 1
)
INSERT INTO redrive.retry_requests (
    id, project_id, job_id, state, outcome, actor, reason, requested_at, published_at, processed_at,
    attempts_before, max_attempts_before, error_before, started_at_before, completed_at_before
)
SELECT
    ($3::uuid[])[n], project_id, id, 'applied', 'applied', $2, 'the other side is back',
    started_at - interval '6 s', started_at - interval '6 s', started_at - interval '5 s',
    attempts - 1, max_attempts, 'TimeoutError: no answer within 30 s',
    started_at - interval '40 s', started_at - interval '10 s'
FROM retried;

-- name: retryable
-- The newest failed job that a retry will bring through.
-- $1 text project id
SELECT j.id FROM control_plane.jobs AS j
WHERE
    j.project_id = $1 AND j.status = 'failed' AND coalesce(j.attempts, 0) < coalesce(j.max_attempts, 3)
    AND (j.payload -> 'demo' ->> 'error') IS NULL
    AND NOT EXISTS (
        SELECT FROM redrive.retry_requests AS r
        WHERE r.project_id = j.project_id AND r.job_id = j.id AND r.state = 'queued'
    )
ORDER BY j.created_at DESC, j.id DESC
LIMIT 1;

-- name: add_retryable
-- One more failed job, for a project whose failed ones have all been retried.
-- $1 text project id
INSERT INTO control_plane.jobs (
    project_id, type, payload, status, attempts, max_attempts, last_error, created_at, scheduled_at, started_at, completed_at
)
VALUES (
    $1, 'email.send', '{"to": "ana@example.com", "template": "receipt", "locale": "pt-BR"}', 'failed', 1, 5,
    'SMTPServerDisconnected: Connection unexpectedly closed',
    now() - interval '1 min', now() - interval '1 min', now() - interval '59 s', now() - interval '50 s'
)
RETURNING id;

-- name: has_jobs
-- $1 text project id
SELECT EXISTS (SELECT FROM control_plane.jobs AS j WHERE j.project_id = $1);

-- name: has_due_jobs
-- Whether a job is to run now, or runs.
-- $1 text project id
SELECT EXISTS (
    SELECT FROM control_plane.jobs AS j
    WHERE j.project_id = $1 AND j.status IN ('pending', 'running') AND coalesce(j.scheduled_at, now()) <= now()
);

-- name: newest_failed
-- $1 text project id
SELECT j.id FROM control_plane.jobs AS j
WHERE j.project_id = $1 AND j.status = 'failed'
ORDER BY j.created_at DESC, j.id DESC
LIMIT 1;

-- name: finish
-- Complete or fail what has run for its time, 1 to 3 seconds unless the payload says otherwise. A first attempt in eight
-- fails; a later one completes. All of it follows from the row, so a stand-in that was killed has nothing to remember.
WITH run AS (
    SELECT project_id, id, attempts, hashtext(id::text) & 1023 AS dice, payload -> 'demo' AS wanted, started_at
    FROM control_plane.jobs
    WHERE status = 'running'
),

done AS (
    SELECT
        j.project_id,
        j.id,
        CASE
            WHEN jsonb_typeof(run.wanted -> 'error') = 'string' THEN run.wanted ->> 'error'
            WHEN run.attempts = 1 AND run.dice % 8 = 0 THEN 'TimeoutError: no answer within 30 s'
        END AS error
    FROM control_plane.jobs AS j
    JOIN run USING (project_id, id)
    WHERE
        j.status = 'running'
        AND j.started_at + CASE
            WHEN jsonb_typeof(run.wanted -> 'takes_s') = 'number' THEN least((run.wanted ->> 'takes_s')::float8, 86400)
            ELSE 1 + 2 * run.dice / 1023.0
        END * interval '1 s' <= now()
    ORDER BY j.project_id, j.id
    FOR UPDATE OF j SKIP LOCKED
)

UPDATE control_plane.jobs AS j
SET status = CASE WHEN done.error IS NULL THEN 'completed' ELSE 'failed' END, last_error = done.error, completed_at = now()
FROM done
WHERE j.project_id = done.project_id AND j.id = done.id;

-- name: start
-- Take what is due, oldest first, and count the attempt.
-- $1 int how many at most
WITH due AS (
    SELECT project_id, id FROM control_plane.jobs
    WHERE status = 'pending' AND coalesce(scheduled_at, now()) <= now() AND coalesce(attempts, 0) < coalesce(max_attempts, 3)
    ORDER BY scheduled_at, id
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)

UPDATE control_plane.jobs AS j
SET status = 'running', attempts = coalesce(j.attempts, 0) + 1, started_at = now(), completed_at = NULL
FROM due
WHERE j.project_id = due.project_id AND j.id = due.id;
