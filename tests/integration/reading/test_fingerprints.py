"""What failed jobs are grouped by: real-looking errors, and what is left of each."""

# ruff: noqa: E501 - an error and what is left of it, on one line

import hashlib

import pytest

from tests.integration.api.conftest import database_url, jobs
from tests.jobs import JobMaker

__all__ = ["database_url", "jobs"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
TRACEBACK = "Traceback (most recent call last):"

ERRORS = [
    # Python
    (f"{TRACEBACK}\n  File \"/app/jobs.py\", line 12, in run\n    send(mail)\nKeyError: 'customer_id'\n", "KeyError: '<str>'"),
    (f"{TRACEBACK}\r\n  File \"jobs.py\", line 3\r\nTimeoutError: after 30 s\r\n\r\n", "TimeoutError: after <n> s"),
    (f"{TRACEBACK}\n  File \"a.py\", line 1\nValueError: bad id {UUID}\n   \n\t\n", "ValueError: bad id <id>"),
    (f"{TRACEBACK} \n  File \"a.py\", line 1\nValueError: no", TRACEBACK),
    (TRACEBACK, TRACEBACK),
    (f"Error\n{TRACEBACK}\nKeyError: 1", "Error"),
    ("ConnectionRefusedError: [Errno 111] Connect call failed ('10.0.3.7', 5432)", "ConnectionRefusedError: [Errno <n>] Connect call failed ('<str>', <n>)"),
    ("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte", "UnicodeDecodeError: '<str>' codec can't decode byte <hex> in position <n>: invalid start byte"),
    ("smtplib.SMTPServerDisconnected: Connection unexpectedly closed: timed out after 17 s waiting for mx2.example.net", "smtplib.SMTPServerDisconnected: Connection unexpectedly closed: timed out after <n> s waiting for mx<n>.example.net"),
    ("<Task finished name='Task-1923' coro=<run() done, defined at /app/run.py:88>>", "<Task finished name='<str>' coro=<run() done, defined at /app/run.py:<n>>>"),
    ("AttributeError: 'NoneType' object has no attribute 'id'", "AttributeError: '<str>' object has no attribute '<str>'"),
    ("MemoryError", "MemoryError"),
    ("object at 0x7f3c9a0b2d40 is not JSON serializable", "object at <hex> is not JSON serializable"),
    # Java
    ("java.lang.NullPointerException: Cannot invoke \"String.length()\" because \"<local4>\" is null\n\tat com.example.Job.run(Job.java:42)", "java.lang.NullPointerException: Cannot invoke \"<str>\" because \"<str>\" is null"),
    ("org.postgresql.util.PSQLException: ERROR: duplicate key value violates unique constraint \"orders_pkey\"", "org.postgresql.util.PSQLException: ERROR: duplicate key value violates unique constraint \"<str>\""),
    ("com.example.Job@1b2c3d4e failed", "com.example.Job@<hex> failed"),
    ("java.net.SocketTimeoutException: Read timed out after 30000ms", "java.net.SocketTimeoutException: Read timed out after <n>ms"),
    ("java.sql.SQLException: HikariPool-1 - Connection is not available, request timed out after 30005ms.", "java.sql.SQLException: HikariPool-<n> - Connection is not available, request timed out after <n>ms."),
    # Go
    ("dial tcp 10.0.0.12:5432: connect: connection refused", "dial tcp <n>.<n>.<n>.<n>:<n>: connect: connection refused"),
    ("Get \"https://api.example.com/v1/users/42?expand=all\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)", "Get \"<str>\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"),
    ("panic: runtime error: index out of range [5] with length 3\n\ngoroutine 1 [running]:", "panic: runtime error: index out of range [<n>] with length <n>"),
    ("open /var/data/9f86d081884c7d65.tmp: no such file or directory", "open /var/data/<hex>.tmp: no such file or directory"),
    ("strconv.Atoi: parsing \"12a\": invalid syntax", "strconv.Atoi: parsing \"<str>\": invalid syntax"),
    ("rpc error: code = Unavailable desc = transport is closing", "rpc error: code = Unavailable desc = transport is closing"),
    # Node
    ("TypeError: Cannot read properties of undefined (reading 'email')\n    at send (/app/send.js:10:5)", "TypeError: Cannot read properties of undefined (reading '<str>')"),
    ("Error: connect ECONNREFUSED 127.0.0.1:6379", "Error: connect ECONNREFUSED <n>.<n>.<n>.<n>:<n>"),
    ("SyntaxError: Unexpected token < in JSON at position 0", "SyntaxError: Unexpected token < in JSON at position <n>"),
    ("Error: Cannot find module `./handlers/v2`", "Error: Cannot find module `<str>`"),
    ("AxiosError: Request failed with status code 404", "AxiosError: Request failed with status code 404"),
    ("AxiosError: Request failed with status code 4041", "AxiosError: Request failed with status code <n>"),
    # PostgreSQL
    ("ERROR:  deadlock detected\nDETAIL:  Process 4711 waits for ShareLock on transaction 815", "ERROR: deadlock detected"),
    ("canceling statement due to statement timeout", "canceling statement due to statement timeout"),
    ("invalid input syntax for type uuid: \"abc\"", "invalid input syntax for type uuid: \"<str>\""),
    ("relation \"jobs_2026_11\" does not exist at character 15", "relation \"<str>\" does not exist at character <n>"),
    ("FATAL: sorry, too many clients already", "FATAL: sorry, too many clients already"),
    ("could not connect to postgresql://app:s3cret@db-1.internal:5432/app?sslmode=require", "could not connect to postgresql://db-<n>.internal"),
    # HTTP
    ("HTTP 503 from upstream", "HTTP 503 from upstream"),
    ("HTTP/1.1 502 Bad Gateway", "HTTP/<n>.<n> 502 Bad Gateway"),
    ("HTTP/2 502 Bad Gateway", "HTTP/<n> <n> Bad Gateway"),
    ("status=429, retry in 30", "status=429, retry in <n>"),
    ("Status: 500 after 1234 ms", "Status: 500 after <n> ms"),
    ("exit code 137", "exit code 137"),
    ("exit code 1", "exit code <n>"),
    ("error code:401 http 12 HTTP500", "error code:401 http <n> HTTP<n>"),
    ("503 Server Error: Service Unavailable for url: http://10.1.2.3:8080/a/b#c", "<n> Server Error: Service Unavailable for url: http://<n>.<n>.<n>.<n>"),
    ("POST https://user:pw@hooks.example.com:8443/t/abc returned HTTP 410 (see https://docs.example.com/x)", "POST https://hooks.example.com returned HTTP 410 (see https://docs.example.com"),
    ("connection to [::1]:5432 and amqp://guest@[fe80::1]:5672/%2F lost", "connection to [::<n>]:<n> and amqp://[fe<n>::<n>] lost"),
    # ids, numbers, quotes
    (f"order {UUID} and {UUID.upper()} differ", "order <id> and <id> differ"),
    ("commit 3f9c01ab77d2e410 of deadbeef, 12345678 and ab12cd3", "commit <hex> of deadbeef, <n> and ab<n>cd<n>"),
    ("can't parse 'it's here' of user's file", "can't parse '<str>' of user's file"),
    ("don't won't can't", "don't won't can't"),
    ("'' and \"\" and ``", "'<str>' and \"<str>\" and `<str>`"),
    ("unbalanced \" quote and ' another", "unbalanced \" quote and ' another"),
    ("-12.5e10 and +3", "-<n>.<n>e<n> and +<n>"),
    # lines, blanks, letters
    ("", ""),
    (None, ""),
    ("\nsecond line", ""),
    ("one\rtwo", "one"),
    ("  tabs\tand \t blanks   ", "tabs and blanks"),
    ("Zeitüberschreitung nach 30 Sekunden – 'größer' als erlaubt", "Zeitüberschreitung nach <n> Sekunden – '<str>' als erlaubt"),  # noqa: RUF001 - a dash
    ("接続がタイムアウトしました (30秒)", "接続がタイムアウトしました (<n>秒)"),
    ("💥 boom 42", "💥 boom <n>"),
    ("x" * 500, "x" * 300),
    ("a " * 200 + "42", ("a " * 150).strip()),
    ("<script>alert(1)</script>", "<script>alert(<n>)</script>"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "text"), ERRORS)
async def test_an_error_is_grouped_by_what_does_not_differ_from_job_to_job(
    jobs: JobMaker, error: str | None, text: str
) -> None:
    found, fingerprint = await jobs.pool.fetchrow(
        "SELECT redrive.error_text($1), redrive.fingerprint('email', redrive.error_text($1))", error
    ) or (None, None)

    assert found == text
    assert fingerprint == hashlib.sha256(f"email\n{text}".encode()).hexdigest()[:16]


async def test_a_group_is_of_one_type(jobs: JobMaker) -> None:
    of_null, of_none, of_other = await jobs.pool.fetchrow(
        "SELECT redrive.fingerprint(NULL, 'e'), redrive.fingerprint('', 'e'), redrive.fingerprint('email', 'e')"
    ) or (None, None, None)

    assert of_null == of_none == hashlib.sha256(b"\ne").hexdigest()[:16]
    assert of_other != of_none
