"""Ids of retries and batches in paths: which texts are ids is decided before any query.

Those of jobs are in shared/job_ids.py.
"""

from uuid import UUID

from shared.errors import RetryNotFound
from shared.job_ids import is_uuid
from shared.models import RetryId


def retry_id_of(text: str) -> RetryId:
    """A retry's id. Raises RetryNotFound for a text that is no UUID."""
    if not is_uuid(text):
        raise RetryNotFound
    return RetryId(UUID(text))
