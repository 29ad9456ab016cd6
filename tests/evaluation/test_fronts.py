"""Fronts: the hull against brute force, readings and crossings by hand."""

import numpy as np
import pytest

from rayscope.evaluation.fronts import Contest, Front


def front(*points: tuple[float, float]) -> Front:
    made = Front.of(*zip(*points, strict=True))
    assert made is not None
    return made


def test_what_is_dominated_or_above_a_chord_is_not_on_the_front():
    """(20, 9) is above the chord from (10, 10) to (30, 4), (40, 4) costs bits for nothing, (50, 1) is the least."""
    made = front((30, 4), (10, 10), (20, 9), (50, 1), (40, 4), (60, 2))
    assert made.bits_P.tolist() == [10, 30, 50]
    assert made.points_P.tolist() == [1, 0, 3]
    assert made.at(np.array([10, 15, 20, 30, 40, 50])).tolist() == [10, 8.5, 7, 4, 2.5, 1]
    assert np.isnan(made.at(np.array([9.9, 50.1]))).all()


def test_the_front_is_the_least_of_all_mixtures_of_two_points():
    rng = np.random.default_rng(0)
    for _ in range(50):
        bits_P, loss_P = rng.uniform(1, 100, 12), rng.uniform(0, 1, 12)
        made = front(*zip(bits_P, loss_P, strict=True))
        rates_R = np.linspace(made.bits_P[0], made.bits_P[-1], 40)
        least_R = np.full(40, np.inf)
        for a in range(12):
            for b in range(12):
                part_R = (
                    (rates_R - bits_P[a]) / (bits_P[b] - bits_P[a]) if a != b else np.where(rates_R >= bits_P[a], 0, 2)
                )
                inside_R = (part_R >= 0) & (part_R <= 1)
                mixed_R = (1 - part_R) * loss_P[a] + part_R * loss_P[b]
                least_R = np.where(inside_R, np.minimum(least_R, mixed_R), least_R)
        np.testing.assert_allclose(made.at(rates_R), least_R, atol=1e-12)


def test_points_without_a_rate_or_a_loss_are_left_out():
    assert Front.of([np.nan, 10], [1, np.nan]) is None
    assert Front.of([0.0], [1.0]) is None
    assert front((0, 0), (np.nan, 0), (10, 3)).bits_P.tolist() == [10]


def test_one_point_has_one_rate():
    assert front((10, 3)).at(np.array([10, 10.1]))[0] == 3
    assert np.isnan(front((10, 3)).at(np.array([10.1]))[0])


def test_intervals_follow_the_points_of_the_value():
    value, low, high = [4.0, 2.0, 3.0], [3.0, 1.0, 0.0], [5.0, 3.0, 9.0]
    made = Front.of([10, 20, 30], [value, low, high])
    assert made is not None
    assert made.points_P.tolist() == [0, 1]
    assert made.at(np.array([15.0]))[:, 0].tolist() == [3, 2, 4]


def contest(ours: list, theirs: dict[str, list], spread: float = 0.0) -> Contest:
    def wide(points: list) -> Front:
        bits, loss = np.array(points, float).T
        made = Front.of(bits, np.stack([loss, loss - spread, loss + spread]))
        assert made is not None
        return made

    found = Contest.of(wide(ours), {name: wide(points) for name, points in theirs.items()})
    assert found is not None
    return found


def test_the_rate_where_the_answer_changes():
    """Ours falls from 10 to 4 in 100 bits, theirs from 12 to 0: equal after 100/3 bits, at 10 - 2 = 8."""
    found = contest([(100, 10), (200, 4)], {"pca": [(100, 12), (200, 0)]})
    assert found.crossings() == [pytest.approx(100 + 100 / 3)]
    assert [outcome for *_, outcome in found.outcomes()] == ["better", "worse"]
    assert found.ratio_R[0, 0] == pytest.approx(1.2)
    assert found.ratio_R[0, -1] == 0


def test_the_best_rival_is_chosen_at_each_rate():
    found = contest([(100, 5), (200, 5 - 1e-9)], {"a": [(100, 2), (200, 1.9)], "b": [(120, 9), (220, 0.1)]})
    assert found.best_R[0] == "a" == found.best_R[found.rates_R <= 120][-1]
    assert found.best_R[-1] == "b"
    assert (found.rates_R[0], found.rates_R[-1]) == (100, 200)
    assert found.crossings() == []


def test_intervals_that_overlap_leave_it_unclear():
    found = contest([(100, 10), (200, 4)], {"pca": [(100, 12), (200, 0)]}, spread=0.75)
    (_, end, first), (start, _, second), (_, _, third) = found.outcomes()
    assert (first, second, third) == ("better", "unclear", "worse")
    difference = [found.rates_R.tolist().index(rate) for rate in (end, start)]
    ours, theirs = found.ours_R[0, difference], found.theirs_R[0, difference]
    assert theirs[0] - ours[0] > 1.5 >= theirs[1] - ours[1]


def test_nothing_to_compare():
    one = front((10, 1))
    assert Contest.of(one, {"pca": front((20, 1))}) is None
    assert Contest.of(one, {}) is None


def test_a_gap_between_rivals_is_left_out():
    found = contest([(10, 9), (100, 1)], {"a": [(10, 8), (20, 7)], "b": [(80, 2), (90, 1)]})
    assert not ((found.rates_R > 20) & (found.rates_R < 80)).any()
    assert set(found.best_R) == {"a", "b"}
