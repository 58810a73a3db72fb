"""Which texts are ids of jobs where REDRIVE_JOB_ID is bigint, and how the ledger has them."""

from uuid import RFC_4122, UUID, uuid4

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.operate.filters import job_id_of
from shared.errors import InvalidJobId
from shared.job_ids import BigintIds
from shared.models import JobId

IDS = BigintIds()
MOST = 2**63 - 1

NO_NUMBERS = [
    "", "0", "00", "01", "007", "-1", "+1", "-0", "1.0", "1.", ".1", "1e3", "0x1", "0b1", "1_000", "1,000", "1L",
    " 1", "1 ", "\t1", "1\n", "\n1", "1\r\n", "1\x00", "\x001", "1\u2028", "\u00a01", "1%20", "%31",
    str(MOST + 1), str(2**64), str(2**64 + 1), "9" * 19, "1" + "0" * 19, "1" * 20, "9" * 8200, "0" * 8200,
    "\u0661", "\uff11", "1\u0661", "\u00b9", "\u2460", "\u0967", "\u06f1", "\U0001d7cf", "\u00bd", "\u96f6", "\u4e00",
    "inf", "nan", "None", "true", "one", "a", "-", "+", "--1", "1-", "1+1", "1 OR 1=1", "1;--", "${jndi:x}", "../1",
    "7b0f3c52-9c1e-4a57-8d0e-3f1a2b6c4d5e",
    "1" * 8 + "-1111-4111-8111-" + "1" * 12, "00000000-0000-8000-8100-626967696e74", "\udcff",
]  # fmt: skip


@given(st.integers(1, MOST) | st.sampled_from([1, 9, 10, 2**31, 2**53 + 1, 10**18, MOST - 1, MOST]))
def test_a_decimal_number_is_an_id_as_it_is_written(number: int) -> None:
    assert IDS.parse(str(number)) == str(number)


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: ascii(text)[:40])
def test_anything_else_is_not(text: str) -> None:
    with pytest.raises(InvalidJobId) as refusal:
        IDS.parse(text)
    assert not refusal.value.args


@given(st.text())
def test_no_text_is_an_id_but_a_number_as_python_writes_it(text: str) -> None:
    try:
        assert IDS.parse(text) == text == str(int(text))
    except InvalidJobId:
        assert not (text.isascii() and text.isdigit() and text == str(int(text)) and 1 <= int(text) <= MOST)


@given(st.integers(-(2**63), MOST), st.integers(-(2**63), MOST))
def test_the_ledger_has_a_uuid_of_version_8_for_each_number(number: int, other: int) -> None:
    """Of every bigint: a table may have others than clients can name, and lists show them."""
    stored = IDS.stored(JobId(str(number)))

    assert isinstance(stored, UUID)
    assert (stored.version, stored.variant) == (8, RFC_4122)
    assert IDS.shown(stored) == str(number)
    assert (stored == IDS.stored(JobId(str(other)))) == (number == other)


@given(st.integers(1, MOST), st.integers(1, MOST))
def test_uuids_are_in_the_order_of_the_numbers(number: int, other: int) -> None:
    stored, others = IDS.stored(JobId(str(number))), IDS.stored(JobId(str(other)))

    assert isinstance(stored, UUID)
    assert isinstance(others, UUID)
    assert (stored < others) == (number < other)


@given(st.uuids())
def test_a_request_from_before_is_shown_with_the_uuid_that_it_has(job_id: UUID) -> None:
    shown = IDS.shown(job_id)

    assert shown == str(job_id)
    assert IDS.stored(shown) == str(job_id)


@pytest.mark.parametrize("text", ["-1", "+1", "1.5", "x", "", "1 ", "\u0661"])
def test_commands_refuse_what_is_neither_a_uuid_nor_a_number(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not an id"):
        job_id_of(text)


def test_commands_take_uuids_and_numbers() -> None:
    some = str(uuid4())

    assert (job_id_of("42"), job_id_of(some.upper())) == ("42", some)
