"""An api, and a hand on the ledger that settles when the test says so, on a database of the module's own."""

from tests.integration.api.conftest import database_url, jobs, serve
from tests.integration.reading.conftest import api, database, ledger

__all__ = ["api", "database", "database_url", "jobs", "ledger", "serve"]
