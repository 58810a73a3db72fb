"""Failpoints: places where a test kills the process. Random kills hardly ever hit the gap between commit and ack.

They are off unless the environment variable REDRIVE_FAILPOINT names one. A batch passes them once, a status read never.
The variable is no setting: it is for tests alone.
"""

import os
import signal
from enum import StrEnum
from typing import Final

VARIABLE: Final = "REDRIVE_FAILPOINT"


class Failpoint(StrEnum):
    """How far a request has come when the process dies."""

    AFTER_INSERT = "after_insert"  # in the ledger; its client has no answer yet
    BEFORE_PUBLISH = "before_publish"  # leased by the relay
    AFTER_CONFIRM = "after_confirm"  # in its queue; the ledger does not know
    AFTER_RECEIVE = "after_receive"  # a worker has the message
    IN_TRANSACTION = "in_transaction"  # before the row locks
    BEFORE_COMMIT = "before_commit"  # applied, not visible to others
    AFTER_COMMIT = "after_commit"  # applied, and the queue does not know
    BEFORE_ACK = "before_ack"  # the same, a little later


def reach(point: Failpoint) -> None:
    """Kill this process, as a power cut would, where the environment names `point`.

    Before that it writes a line to the log, past all buffers: `{"event":"failpoint reached","failpoint":"before_ack"}`.
    By this line a test tells the death from any other SIGKILL.
    """
    if os.environ.get(VARIABLE) == point:
        os.write(2, b'{"event":"failpoint reached","failpoint":"%s"}\n' % point.encode())
        os.kill(os.getpid(), signal.SIGKILL)
