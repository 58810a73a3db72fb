"""A PostgreSQL URL says what it says to PostgreSQL's own programs, and what cannot work is refused by name."""

from pathlib import Path

import pytest

from shared.postgres_url import Access, Host, check_files, postgres_url

VARIABLES = (
    "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR",
    "PGTARGETSESSIONATTRS", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
)  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that says nothing of PostgreSQL."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgresql://h/x", [("h", 5432)]),
        ("POSTGRES://u:p@h:5433/x", [("h", 5433)]),
        (
            "postgresql://user@one:5432,two:,[::1]:5433,[::1]/x",
            [("one", 5432), ("two", 5432), ("::1", 5433), ("::1", 5432)],
        ),
        ("postgresql://[fe80::1%25eth0]:6000/x", [("fe80::1%eth0", 6000)]),
        ("postgresql://%2Frun%2Fpostgresql/x", [("/run/postgresql", 5432)]),
        ("postgresql:///x?host=/run/a,/run/b&port=5432,5433", [("/run/a", 5432), ("/run/b", 5433)]),
        ("postgresql:///x?host=one,::1&port=6000", [("one", 6000), ("::1", 6000)]),
    ],
)
def test_every_host_has_its_port(text: str, hosts: list[tuple[str, int]]) -> None:
    assert postgres_url(text).hosts == tuple(Host(*host) for host in hosts)


def test_special_characters_come_out_as_they_went_in() -> None:
    url = postgres_url("postgresql://a%40b:%2F%23%3F%25+@h/d%2Fb?application_name=a+b&options=-c+jit%3Doff")

    assert (url.user, url.password, url.database) == ("a@b", "/#?%+", "d/b")
    assert (url.application_name, url.options) == ("a+b", "-c jit=off")  # only in options is a + ever meant as a blank


def test_no_password_shows_where_a_url_is_printed() -> None:
    assert "canary" not in repr(postgres_url("postgresql://u:canary@h/x?sslpassword=canary"))


def test_what_the_url_leaves_open_comes_from_its_service_and_then_from_variables(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "services").write_text("[prod]\nhost=one,two\nport=6000\nuser=owner\npassword=100%\ndbname=app\n")
    environment.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    environment.setenv("PGHOST", "elsewhere")
    environment.setenv("PGTARGETSESSIONATTRS", "primary")

    url = postgres_url("postgresql://me@/?service=prod")

    assert url.hosts == (Host("one", 6000), Host("two", 6000))
    assert (url.user, url.password, url.database, url.access) == ("me", "100%", "app", Access.PRIMARY)
    assert postgres_url("postgresql://").hosts == (Host("elsewhere", 5432),)


@pytest.mark.parametrize(
    "query",
    [
        *(f"sslmode={mode}" for mode in ("disable", "allow", "prefer", "require", "verify-full")),
        *(f"target_session_attrs={access}" for access in Access),
        "sslrootcert=system",
        "load_balance_hosts=random",
        "krbsrvname=pg",
        "ssl_min_protocol_version=TLSv1.2&ssl_max_protocol_version=TLSv1.2",
        "ssl_min_protocol_version=TLSv1&ssl_max_protocol_version=TLSv1.1",
        "application_name=me",
        "options=-csearch_path%3Dpublic",
    ],
)
def test_what_works_is_taken_without_a_note(query: str) -> None:
    assert postgres_url(f"postgresql://h/x?{query}").ignored == ()


@pytest.mark.parametrize(
    "query", ["connect_timeout=10", "keepalives=1&keepalives_idle=30", "connection_limit=5", "schema=public"]
)
def test_what_is_harmless_is_noted(query: str) -> None:
    notes = postgres_url(f"postgresql://h/x?{query}").ignored

    assert [note.partition(" ")[0] for note in notes] == [part.partition("=")[0] for part in query.split("&")]


@pytest.mark.parametrize(
    "query", ["channel_binding=prefer", "gssencmode=disable", "uselibpqcompat=true", "replication=off"]
)
def test_what_asks_for_what_is_so_anyway_is_taken(query: str) -> None:
    assert postgres_url(f"postgresql://h/x?{query}").ignored == ()


@pytest.mark.parametrize(
    "query", ["pgbouncer=true", "prepared_statements=false", "statement_cache_size=0", "prepareThreshold=0"]
)
def test_other_drivers_words_for_a_pooler_mean_one(query: str) -> None:
    assert postgres_url(f"postgresql://h/x?{query}").pooled
    assert not postgres_url("postgresql://h/x?pgbouncer=false&statement_cache_size=100").pooled


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=canary", "sslmode=no-verify", "ssl=true", "sslaccept=strict", "channel_binding=require",
        "gssencmode=require", "require_auth=scram-sha-256", "requirepeer=canary", "hostaddr=127.0.0.1",
        "connect_timeout=canary", "target_session_attrs=canary", "search_path=canary", "jit=off", "statement_timeout=1",
        "sslcrldir=canary", "replication=database", "client_encoding=latin1", "poolmode=canary", "service=canary",
        "sslnegotiation=direct", "sslrootcert=system&sslmode=require", "dbname=y", "sslmode=require&sslmode=disable",
        "ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", "ssl_max_protocol_version=TLSv1.1",
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_its_name_alone(query: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        postgres_url(f"postgresql://h/x?{query}")

    assert str(refused.value).partition(":")[0] in {part.partition("=")[0] for part in query.split("&")}
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql:x", "mysql://h/x", "postgresql://u:canary/2@h/x", "postgresql://u:canary#@h/x", "postgresql://u:p@canary@h/x",
        "postgresql://u:p[canary@h/x", "postgresql://h:70000/x", "postgresql://h:canary/x", "postgresql://h/x?canary",
        "postgresql://u:canary%00@h/x", "postgresql://u:canary%FF@h/x", "postgresql://a,,b/x", "postgresql://h/x\ncanary",
        "postgresql:///x?host=a,b&port=1,2,3",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_without_a_word_of_it(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        postgres_url(text)

    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        "sslrootcert={}/none&sslmode=verify-full",
        "sslcert={}/none&sslkey={}/none",
        "passfile={}/none",
        "sslmode=verify-ca",
    ],
)
def test_a_file_that_does_not_serve_is_refused_by_its_parameter(query: str, tmp_path: Path) -> None:
    url = postgres_url(f"postgresql://h/x?{query.replace('{}', str(tmp_path))}")

    with pytest.raises(ValueError, match=r"^(sslrootcert|sslcert or sslkey|passfile): ") as refused:
        check_files(url)

    assert str(tmp_path) not in str(refused.value)


def test_a_file_of_passwords_that_others_may_read_is_refused(tmp_path: Path) -> None:
    passfile = tmp_path / "passwords"
    passfile.write_text("*:*:*:*:canary\n")
    url = postgres_url(f"postgresql://h/x?passfile={passfile}")

    passfile.chmod(0o644)
    with pytest.raises(ValueError, match=r"^passfile: must be readable for its owner alone"):
        check_files(url)
    passfile.chmod(0o600)
    check_files(url)
