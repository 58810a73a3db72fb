"""How much a client may ask for: the api refuses more, and so do the commands, before they ask.

Texts are counted in characters.
"""

import re
from typing import Final

MAX_REASON: Final = 500
MAX_ACTOR: Final = 255
ACTOR: Final = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{MAX_ACTOR}}}")
"""What an actor may be: no control characters, which would break lines of the audit trail, and no lone surrogates."""
MAX_STATUS: Final = 100
MAX_FILTER: Final = 200
"""Any other text by which jobs are chosen: a type, a part of an error."""

MAX_BULK_IDS: Final = 1_000
"""How many jobs one bulk retry may name."""
MAX_BATCH: Final = 10_000
"""How many jobs one bulk retry may match."""
MAX_DELAY_S: Final = 86_400
MAX_SPREAD_S: Final = 3_600
MAX_EXTRA_ATTEMPTS: Final = 10

MAX_TIMES: Final = 100
MAX_WITHIN_S: Final = 604_800
"""Of `retried_fewer_than`: how many retries, within how long."""
