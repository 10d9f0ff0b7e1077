import pytest

from pyg_equivariant.training import Cosine, Plateau, Schedule


def test_warmup_is_linear_and_ends() -> None:
    schedule = Schedule(warmup=10)
    assert [schedule.factor(step, 0.0) for step in (0, 4, 9, 10, 99)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])


def test_cosine_falls_from_one_to_its_floor() -> None:
    schedule = Cosine(floor=0.1)
    factors = [schedule.factor(1, fraction / 10) for fraction in range(11)]
    assert factors[0] == 1
    assert factors[5] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)
    assert schedule.factor(1, 1.2) == pytest.approx(0.1)


def test_plateau_waits_then_reduces_down_to_its_floor() -> None:
    schedule = Plateau(patience=1, reduction=0.5, floor=0.2)
    levels = []
    for loss in (3.0, 2.0, 2.5, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        schedule.observe(loss)
        levels.append(schedule.factor(0, 0.0))
    assert levels == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]


def test_plateau_resumes() -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 1.0, 1.0, 1.0]
    unbroken, broken = Plateau(patience=1), Plateau(patience=1)
    for loss in losses:
        unbroken.observe(loss)
    for loss in losses[:3]:
        broken.observe(loss)
    resumed = Plateau(patience=1)
    resumed.load_state_dict(broken.state_dict())
    for loss in losses[3:]:
        resumed.observe(loss)
    assert resumed.__dict__ == unbroken.__dict__


def test_refusals() -> None:
    with pytest.raises(ValueError, match="warmup"):
        Schedule(-1)
    with pytest.raises(ValueError, match="reduction"):
        Plateau(reduction=1.0)
