"""What may stand for a job's id, and what may not, however much it looks like one."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidJobId
from shared.job_ids import UuidIds

GOOD = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
ONLY_4 = UuidIds(frozenset({4}))
ANY = UuidIds()


@given(st.uuids(version=4), st.booleans())
def test_a_uuid_of_version_4_is_an_id_in_either_case(job_id: UUID, upper: bool) -> None:  # noqa: FBT001 - generated
    text = str(job_id)

    assert ONLY_4.parse(text.upper() if upper else text) == text


def test_versions_can_be_widened() -> None:
    version_7 = "0193c9a8-0000-7000-8000-000000000001"

    assert UuidIds(frozenset({4, 7})).parse(version_7.upper()) == version_7
    with pytest.raises(InvalidJobId):
        ONLY_4.parse(version_7)


@given(st.binary(min_size=16, max_size=16).map(lambda some: UUID(bytes=some)))
def test_any_takes_every_value_of_the_form(job_id: UUID) -> None:
    assert ANY.parse(str(job_id)) == ANY.parse(str(job_id).upper()) == str(job_id)


OTHER_VERSIONS = [
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",  # version 1
    "6fa459ea-ee8a-3ca4-894e-db77e160355e",  # 3
    "886313e1-3b8a-5372-9b90-0c9aee199e5d",  # 5
    "0193c9a8-0000-7000-8000-000000000001",  # 7
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    GOOD.replace("-80b4", "-00b4"),  # another variant, each
    GOOD.replace("-80b4", "-c0b4"),
    GOOD.replace("-80b4", "-e0b4"),
    GOOD.replace("-80b4", "-70b4"),
]
NO_UUIDS = [
    "",
    "not-a-uuid",
    "{" + GOOD + "}",
    "(" + GOOD + ")",
    "urn:uuid:" + GOOD,
    "uuid:" + GOOD,
    GOOD.replace("-", ""),
    GOOD.replace("-", "_"),
    GOOD.replace("-", "\u2010"),
    GOOD[:-1],
    GOOD + "0",
    " " + GOOD,
    GOOD + " ",
    "+" + GOOD[1:],
    "-" + GOOD[1:],
    "0x" + GOOD[2:],
    GOOD + "\n",
    "\n" + GOOD,
    GOOD + "\r\n",
    GOOD + "\x00",
    GOOD[:-1] + "\x00",
    GOOD + "\u2028",
    GOOD.replace("6", "\u0666"),  # ARABIC-INDIC DIGIT SIX
    GOOD.replace("6", "\uff16"),  # FULLWIDTH DIGIT SIX
    GOOD.replace("a", "\uff41"),
    GOOD.replace("b", "B\u0301"),
    GOOD[:-1] + "g",
    GOOD[:-1] + "\udcff",
    GOOD + "' OR '1'='1",
    "1; DROP TABLE control_plane.jobs--",
    "${jndi:ldap://127.0.0.1/a}",
    "../../etc/passwd",
    GOOD + "/../" + GOOD,
    "%00",
    GOOD * 250,
    "a" * 8200,
]


@pytest.mark.parametrize("text", OTHER_VERSIONS, ids=lambda text: ascii(text)[:50])
def test_another_version_or_variant_is_not(text: str) -> None:
    with pytest.raises(InvalidJobId):
        ONLY_4.parse(text)
    assert str(ANY.parse(text)) == text


@pytest.mark.parametrize("text", NO_UUIDS, ids=lambda text: ascii(text)[:50])
def test_anything_else_is_not(text: str) -> None:
    for ids in (ONLY_4, UuidIds(frozenset({4})), ANY):
        with pytest.raises(InvalidJobId) as refusal:
            ids.parse(text)
        assert not refusal.value.args


@given(st.data())
def test_no_character_can_be_replaced_by_one_that_is_not_a_digit(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, 35))
    instead = data.draw(st.characters().filter(lambda c: c not in "0123456789abcdefABCDEF-") | st.just(""))
    text = str(uuid4())

    with pytest.raises(InvalidJobId):
        ONLY_4.parse(text[:at] + instead + text[at + 1 :])
