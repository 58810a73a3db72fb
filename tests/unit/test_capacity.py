"""The capacity model of the bench: what it makes of two measurements, and what it predicts."""

from dataclasses import fields

import pytest

from bench.capacity import Batches, Cost, Limit, Model, Observed, processes_needed

OWN = Cost(api=0.1, worker=0.02, postgresql=0.05, rabbitmq=0.01, client=0.03)
OF_BATCH = Cost(api=1.0, worker=0.8, postgresql=0.5, rabbitmq=0.2, client=0.0)
MANY = Batches(accepted=0.02, published=0.01, settled=0.01)
FEW = Batches(accepted=0.2, published=0.1, settled=0.05)


def cost_of(batches: Batches) -> Cost:
    """What a system costs that is as the model has it."""
    return Cost(**{
        each.name: getattr(OWN, each.name) + getattr(OF_BATCH, each.name) * batches.of(each.name)
        for each in fields(Cost)
    })  # fmt: skip


def observed(clients: int, batches: Batches, cost: Cost | None = None) -> Observed:
    return Observed(clients, cost or cost_of(batches), batches)


MODEL = Model.fitted(observed(128, MANY), observed(16, FEW))


def test_two_measurements_tell_the_cost_of_a_request_from_that_of_a_batch() -> None:
    for who in (each.name for each in fields(Cost)):
        assert getattr(MODEL.own, who) == pytest.approx(getattr(OWN, who))
        assert getattr(MODEL.of_batch, who) == pytest.approx(getattr(OF_BATCH, who))


def test_what_was_measured_costs_what_was_measured() -> None:
    assert MODEL.batches(apis=1, workers=1, clients=128, per_s=1) == MANY
    assert MODEL.cost(MANY).total == pytest.approx(cost_of(MANY).total)


def test_a_batch_costs_nothing_where_smaller_batches_were_not_dearer() -> None:
    cheap = Cost(api=0.05, worker=0.01, postgresql=0.01, rabbitmq=0.0, client=0.01)

    model = Model.fitted(observed(128, MANY), observed(16, FEW, cheap))

    assert model.of_batch == Cost(0, 0, 0, 0, 0)
    assert model.own == cost_of(MANY)


def test_a_request_without_its_batch_costs_no_less_than_nothing() -> None:
    dear = Cost(api=9.0, worker=9.0, postgresql=9.0, rabbitmq=9.0, client=9.0)

    model = Model.fitted(observed(128, MANY), observed(16, FEW, dear))

    assert min(getattr(model.own, each.name) for each in fields(Cost)) >= 0
    assert model.cost(MANY).total == pytest.approx(cost_of(MANY).total)


def test_two_api_processes_make_twice_as_many_batches_as_they_share_the_clients() -> None:
    two = MODEL.batches(apis=2, workers=1, clients=128, per_s=1)

    assert (two.accepted, two.published) == (2 * MANY.accepted, 2 * MANY.published)
    assert MODEL.batches(apis=2, workers=1, clients=256, per_s=1).accepted == MANY.accepted


def test_the_messages_of_one_lease_go_to_different_workers() -> None:
    large = Model.fitted(observed(128, Batches(0.02, published=0.008, settled=0.008)), observed(16, FEW))

    batches = [large.batches(apis=1, workers=workers, clients=128, per_s=1).settled for workers in (1, 2, 4)]

    assert batches == [0.008, 0.016, 0.016]  # 125 requests are two messages


def test_a_worker_settles_together_what_comes_while_it_settles() -> None:
    slow = Observed(128, cost_of(MANY), MANY, cycle_s=0.05)
    model = Model.fitted(slow, observed(16, FEW))

    assert model.batches(apis=1, workers=1, clients=128, per_s=1_000).settled == MANY.settled
    assert model.batches(apis=1, workers=1, clients=128, per_s=4_000).settled == pytest.approx(20 / 4_000)
    assert model.batches(apis=2, workers=1, clients=128, per_s=4_000).settled == pytest.approx(20 / 4_000)
    assert model.batches(apis=2, workers=2, clients=128, per_s=4_000).settled == pytest.approx(40 / 4_000)


def test_rate_and_batches_agree() -> None:
    model = Model.fitted(Observed(128, cost_of(MANY), MANY, cycle_s=0.05), observed(16, FEW))

    predicted = model.predicted(apis=2, workers=1, clients=128, cores=2)

    batches = model.batches(apis=2, workers=1, clients=128, per_s=predicted.per_s)
    assert batches.settled == pytest.approx(20 / predicted.per_s)
    assert predicted.per_s == pytest.approx(2_000 / model.cost(batches).total, rel=0.01)


def test_there_are_no_more_batches_than_requests() -> None:
    alone = MODEL.batches(apis=64, workers=64, clients=64, per_s=1)

    assert (alone.accepted, alone.published, alone.settled) == (1, 1, 1)


def test_the_lowest_limit_is_the_rate() -> None:
    cost = cost_of(MANY)
    limits = MODEL.limits(cost, apis=1, workers=1, cores=2)

    assert limits[Limit.CORES] == pytest.approx(2_000 / cost.total)
    assert limits[Limit.API] == pytest.approx(1_000 / cost.api)
    few, many = (MODEL.predicted(apis=1, workers=1, clients=128, cores=cores) for cores in (1, 64))
    assert (few.limit, many.limit) == (Limit.CORES, Limit.API)
    assert few.per_s == pytest.approx(1_000 / cost.total)
    assert many.per_s == pytest.approx(1_000 / cost.api)


def test_what_one_api_process_waits_several_wait_less_often() -> None:
    allowed = MODEL.predicted(apis=1, workers=1, clients=128, cores=2).per_s
    slow = Observed(128, cost_of(MANY), MANY, per_s=0.8 * allowed, cores=2)
    model = Model.fitted(slow, observed(16, FEW))

    ratios = [
        model.predicted(apis=apis, workers=1, clients=128, cores=2).per_s
        / MODEL.predicted(apis=apis, workers=1, clients=128, cores=2).per_s
        for apis in (1, 2, 3)
    ]

    assert model.waiting == pytest.approx(0.2)
    assert ratios == pytest.approx([0.8, 0.96, 0.992])


def test_a_rate_above_what_the_limits_allow_is_no_waiting() -> None:
    fast = Observed(128, cost_of(MANY), MANY, per_s=1e9, cores=2)

    assert Model.fitted(fast, observed(16, FEW)).waiting == 0


def test_what_takes_no_part_limits_nothing() -> None:
    reads = Cost(api=0.1, worker=0, postgresql=0.02, rabbitmq=0, client=0.01)

    assert set(MODEL.limits(reads, apis=2, workers=0, cores=2)) == {Limit.CORES, Limit.API, Limit.CLIENT}


def test_reads_are_predicted_from_their_queries_alone() -> None:
    base = Cost(api=0.1, worker=0, postgresql=0.02, rabbitmq=0, client=0.01)
    dearer = Cost(api=0.2, worker=0, postgresql=0.03, rabbitmq=0, client=0.01)
    model = Model.fitted(observed(64, Batches(0.05), base), observed(16, Batches(0.15), dearer))

    predicted = model.predicted(apis=2, workers=0, clients=64, cores=2)

    assert predicted.cost.api == pytest.approx(0.15)
    assert predicted.cost.postgresql == pytest.approx(0.025)
    assert predicted.per_s == pytest.approx(2_000 / 0.185)


def test_processes_are_needed_for_the_time_of_their_loops() -> None:
    assert processes_needed(1_000_000, 0.1) == 100
    assert processes_needed(1_001, 1) == 2
    assert processes_needed(1, 0.1) == 1
