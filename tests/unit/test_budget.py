"""How many epochs fit into a time: the arithmetic of benchmarks/budget.py."""

import pytest

from benchmarks import budget

COSTS = [
    budget.Cost(start=30, epoch=200, evaluation=10, eval_every=1),
    budget.Cost(start=30, epoch=200, evaluation=10, eval_every=4),
    budget.Cost(start=30, epoch=0.1, evaluation=50, eval_every=7),  # almost all the time is for evaluations
    budget.Cost(start=0, epoch=1.7, evaluation=0.1, eval_every=200),
]


def test_a_run_costs_its_start_its_epochs_its_evaluations_and_its_end() -> None:
    cost = budget.Cost(start=30, epoch=200, evaluation=10, eval_every=4)
    assert cost.of(8) == 30 + 8 * 200 + 2 * 10 + 15
    assert cost.of(9) == 30 + 9 * 200 + 3 * 10 + 15  # the last epoch is always evaluated


@pytest.mark.parametrize("cost", COSTS)
def test_the_epochs_that_fit_do_fit_and_one_more_does_not(cost: budget.Cost) -> None:
    for seconds in range(300, 40_000, 37):
        epochs = cost.epochs_within(seconds)
        assert cost.of(epochs) <= seconds < cost.of(epochs + 1)


@pytest.mark.parametrize("cost", COSTS)
def test_more_minutes_never_give_fewer_epochs(cost: budget.Cost) -> None:
    epochs = [cost.epochs_within(seconds) for seconds in range(0, 40_000, 37)]
    assert epochs == sorted(epochs) and epochs[0] == 0


@pytest.mark.parametrize("cost", COSTS)
def test_exactly_the_time_of_a_run_is_enough_for_it(cost: budget.Cost) -> None:
    assert [cost.epochs_within(cost.of(epochs)) for epochs in (1, 4, 5, 300)] == [1, 4, 5, 300]


def test_no_more_epochs_fit_than_a_configuration_may_have() -> None:
    assert COSTS[0].epochs_within(1e12) == budget.MOST


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--minutes=0"], "--minutes is 0 and must be a positive number."),
        (["--minutes=nan"], "--minutes is nan and must be a positive number."),
        (["--minutes=5", "--val=0"], "--val is 0 and must be a positive number."),
        (["--minutes=5", "--images=100"], "train.global_batch_size is 128, more than the 100 training images."),
        (["--minutes=5", "--optim.rate=1"], "optim.rate is not a known key"),
        ([], "arguments are required: --minutes; see `benchmarks/budget.py --help`."),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(budget.errors.UserError, match=sentence):
        budget.read(options)
