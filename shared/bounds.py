"""How much a client may ask for: the api refuses more, and so do the commands, before they ask.

Texts are counted in characters.
"""

from typing import Final

MAX_REASON: Final = 500
MAX_ACTOR: Final = 255
MAX_STATUS: Final = 100
MAX_FILTER: Final = 200
"""Any other text by which jobs are chosen: a type, a part of an error."""

MAX_IDS: Final = 1_000
"""How many jobs one bulk retry may name."""
MAX_BATCH: Final = 10_000
"""How many jobs one bulk retry may match."""
MAX_DELAY_S: Final = 86_400
MAX_SPREAD_S: Final = 3_600
MAX_EXTRA_ATTEMPTS: Final = 10

MAX_TIMES: Final = 100
MAX_WITHIN_S: Final = 604_800
"""Of `retried_fewer_than`: how many retries, within how long."""
