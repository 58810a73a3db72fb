-- migrate:up
-- What failed jobs are grouped by: their error without what differs from one job to the next. Here, so that lists,
-- groups and bulk retries agree. All patterns are ASCII: no locale of a database changes a group.
-- Each pattern is tried only where a plain search finds what it needs: of 10,000 errors most need few of them.
CREATE FUNCTION redrive.error_text(last_error text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE COST 1000 AS $$
DECLARE
    traceback CONSTANT text := 'Traceback (most recent call last):';
    blanks CONSTANT text := E' \t\n\x0b\f\r';
    line text COLLATE "C" := split_part(translate(left(last_error, 300), E'\r', E'\n'), E'\n', 1);
    part text COLLATE "C";
    shown text COLLATE "C";
BEGIN
    IF last_error IS NULL THEN
        RETURN '';
    END IF;

    -- 1. One line, 300 characters of it, with single spaces.
    IF line = traceback THEN
        line := left(split_part(translate(rtrim(last_error, blanks), E'\r', E'\n'), E'\n', -1), 300);
    END IF;
    line := btrim(translate(line, E'\t\x0b\f', '   '), ' ');
    IF strpos(line, '  ') > 0 THEN
        line := regexp_replace(line, '  +', ' ', 'g');
    END IF;

    -- 2. URLs: the scheme and the host stay. A URL ends at a blank, a quote or an angle bracket.
    IF strpos(line, '://') > 0 THEN
        line := regexp_replace(
            line,
            '([a-zA-Z0-9+.-]://)(?:[^ /?#@"''`<>]*@)?(\[[0-9a-fA-F:.]*\]|[a-zA-Z0-9._~%-]+)[^ "''`<>]*',
            '\1\2',
            'g'
        );
    END IF;

    -- 3. UUIDs.
    IF line LIKE '%________-____-____-____-____________%' THEN
        line := regexp_replace(
            line, '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g'
        );
    END IF;

    -- 4. What stands in quotes; an apostrophe within a word is none.
    IF strpos(line, '"') > 0 OR strpos(line, '`') > 0 OR strpos(line, '''') > 0 THEN
        line := regexp_replace(
            line,
            '(")[^"]*"|(`)[^`]*`|(?<![a-zA-Z0-9])('')(?:[^'']|''[a-zA-Z0-9])*''(?![a-zA-Z0-9])',
            '\1\2\3<str>\1\2\3',
            'g'
        );
    END IF;

    IF line !~ '[0-9]' THEN
        RETURN line;
    END IF;

    -- 5. Hexadecimal numbers: 0x..., and words of eight digits and more that have a letter and a digit among them.
    IF strpos(line, '0x') > 0 THEN
        line := regexp_replace(line, '0x[0-9a-fA-F]+', '<hex>', 'g');
    END IF;
    IF line ~ '[0-9a-fA-F]{8}' THEN
        line := regexp_replace(
            line, '\m(?=[0-9a-fA-F]{8})(?:[0-9]+[a-fA-F]|[a-fA-F]+[0-9])[0-9a-fA-F]*\M', '<hex>', 'g'
        );
    END IF;

    -- 6. Numbers, but for a status of three digits. A line break is put before each of these: there is none else.
    IF line ~ '[pPsSeE1][ :=]+[0-9]{3}' THEN
        line := regexp_replace(
            line,
            '((?:[hH][tT][tT][pP](?:/1\.1)?|[sS][tT][aA][tT][uU][sS]|[cC][oO][dD][eE])[ :=]+)([0-9]{3}(?![0-9]))',
            E'\\1\n\\2',
            'g'
        );
    END IF;
    FOREACH part IN ARRAY string_to_array(line, E'\n') LOOP
        IF shown IS NULL THEN
            shown := regexp_replace(part, '[0-9]+', '<n>', 'g');
        ELSE
            shown := shown || left(part, 3) || regexp_replace(substr(part, 4), '[0-9]+', '<n>', 'g');
        END IF;
    END LOOP;
    RETURN shown;
END
$$;

-- The group of a failed job: the first 16 hexadecimal digits of a hash.
CREATE FUNCTION redrive.fingerprint(type text, error_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT left(encode(sha256(convert_to(coalesce(type, '') || chr(10) || error_text, getdatabaseencoding())), 'hex'), 16)
$$;

REVOKE EXECUTE ON FUNCTION redrive.error_text(text), redrive.fingerprint(text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION redrive.error_text(text), redrive.fingerprint(text, text) TO redrive_api;

-- migrate:down
DROP FUNCTION redrive.fingerprint(text, text);
DROP FUNCTION redrive.error_text(text);
