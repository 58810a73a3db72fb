"""`redrive`, without the looks at the database that go on beside requests: so what a request sends can be counted."""

import pytest

import shared.relation
from cli.main import main
from tests.without_looks import stop_looks

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        stop_looks(patch)
        patch.setattr(shared.relation, "LOOK_EVERY_S", 3_600)
        main()
