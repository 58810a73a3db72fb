-- migrate:up
-- What cursors are signed with: the same for all processes of a deployment, unknown to clients, and not changed where a
-- password or a key of tokens is. A row of the database outlives all of these, and goes along with a dump.
CREATE TABLE redrive.cursor_key (
    id boolean PRIMARY KEY DEFAULT true CHECK (id), -- one row
    key bytea NOT NULL
);
INSERT INTO redrive.cursor_key (key) VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

GRANT SELECT ON redrive.cursor_key TO redrive_api;

-- migrate:down
DROP TABLE redrive.cursor_key;
