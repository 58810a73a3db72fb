"""Places where a test can have the process killed: random kills hardly ever hit the gap between commit and ack.

Off unless the environment variable REDRIVE_FAILPOINT names one. They are passed once a batch, never once a status read,
and are no setting: nobody who runs Redrive has a use for them.
"""

import os
import signal
from enum import StrEnum
from typing import Final

VARIABLE: Final = "REDRIVE_FAILPOINT"


class Failpoint(StrEnum):
    """Where a request can be when the lights go out."""

    AFTER_INSERT = "after_insert"  # in the ledger; its client has no answer yet
    BEFORE_PUBLISH = "before_publish"  # leased by the relay
    AFTER_CONFIRM = "after_confirm"  # in its queue; the ledger does not know
    AFTER_RECEIVE = "after_receive"  # in a worker's hands
    IN_TRANSACTION = "in_transaction"  # before the row locks
    BEFORE_COMMIT = "before_commit"  # applied, and nobody can see it
    AFTER_COMMIT = "after_commit"  # applied, and the queue does not know
    BEFORE_ACK = "before_ack"  # the same, a little later


def reach(point: Failpoint) -> None:
    """Die here, as if by a power cut, where the environment says so.

    Its last words are a line of the log, `{"event":"failpoint reached","failpoint":"before_ack"}`, written past all
    buffers: whoever counts deaths has to know this one from any other SIGKILL.
    """
    if os.environ.get(VARIABLE) == point:
        os.write(2, b'{"event":"failpoint reached","failpoint":"%s"}\n' % point.encode())
        os.kill(os.getpid(), signal.SIGKILL)
