"""What `redrive up` prints once it is up: addresses, a token, and three lines to paste."""

import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cli.local.demo import PROJECT
from shared.settings import ApiSettings

TOKEN_TTL_S: Final = 12 * 3600
"""How long the printed token is good for: a day's work."""


def welcome_text(
    *,
    settings: ApiSettings,
    folder: Path,
    token: str,
    header_file: Path,
    environment_file: Path,
    database_url: str,
    took_s: float,
    example: str | None,
    adapter: str | None = None,
) -> str:
    """All of it. `example` is a failed job's id, None where there is none; `adapter` names the system."""
    url = api_url(settings)
    # curl reads the token from the file, so that a line can be read by people too.
    curl = f"curl -sS -H @{shlex.quote(str(header_file))}"
    dispatch = "through RabbitMQ" if settings.amqp_url else "through the ledger (no RabbitMQ)"
    facts = [
        f"Redrive is up after {took_s:.1f} s.",
        "",
        f"  API    {url}",
        *([f"  look   {url}/console/#token={token}"] if settings.console == "on" else []),
        f"  ops    http://{_reachable(settings.host)}:{settings.ops_port}/readyz",
        f"  data   {folder}",
        f"  SQL    {database_url}",
        f"  retry  {dispatch}",
        *([f"  jobs   {adapter}'s own; its own worker runs them"] if adapter else []),
        "",
        f'A token for project "{PROJECT}", good for {TOKEN_TTL_S // 3600} hours:',
        "",
        f"  {token}",
        "",
    ]
    job = f"{url}/api/jobs/{example}"
    lines = (
        [
            "A failed job; its retry; and, a few seconds later, what became of it:",
            "",
            f"  {curl} {job}",
            f"  {curl} -X POST {job}/retry",
            f"  {curl} {job}/retries",
        ]
        if example
        else ["The table control_plane.jobs is empty and yours to fill:", "", f"  {curl} {url}/api/jobs"]
    )
    commands = [
        "",
        "Operators' commands, in another terminal:",
        "",
        f"  . {shlex.quote(str(environment_file))}",
        "  redrive jobs stats",
    ]
    return "\n".join([*facts, *lines, *commands, "", "Ctrl-C stops all of it; a second start finds its data again."])


def api_url(settings: ApiSettings) -> str:
    """Where the API is for a client on this machine."""
    return f"http://{_reachable(settings.host)}:{settings.port}"


def _reachable(host: str) -> str:
    """`host` as a client on this machine writes it."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "[::1]" if address.version == 6 else "127.0.0.1"
    return f"[{host}]" if address.version == 6 else host
