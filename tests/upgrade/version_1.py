"""The programs without messages of several requests, as a release before these had them: `redrive`'s own arguments.

A relay publishes each request as a message of version 1, and to a worker version 2 is unknown.
"""

import pytest

from cli.main import main

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.messages.MOST_REQUESTS", 1)
        patch.setattr("shared.messages._SEVERAL", 0)
        main()
