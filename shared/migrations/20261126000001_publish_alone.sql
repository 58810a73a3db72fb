-- migrate:up
-- Requests that are published in a message of their own, never together with others: their message was delivered before,
-- and a worker may have failed with it.
ALTER TABLE redrive.retry_requests ADD COLUMN publish_alone boolean NOT NULL DEFAULT false;

-- migrate:down
ALTER TABLE redrive.retry_requests DROP COLUMN publish_alone;
