"""What rays_vs_directions observes of hand-made records:
every number is worked out here, with its ends over two seeds.
"""

import math

import pytest
import torch

from rayscope.dictionaries import TopK
from rayscope.model.sites import Site
from rayscope.studies.arms import Arm
from rayscope.studies.rays_vs_directions.observed import log_ratio, observe
from rayscope.studies.rays_vs_directions.records import DIRECTIONS, DIRECTIONS_2M, RAYS, RAYS_M, Records, world_stream

RESIDUAL, NEXT = Site("blocks.0.hook_resid_post", 4, 0), Site("blocks.1.hook_resid_post", 4, 1)
MLP = Site("blocks.0.mlp.hook_post", 4, 0)
SITES, KS, SEEDS, WORLDS = (RESIDUAL, NEXT, MLP), [2, 4], (0, 1), (0.0, 0.5, 1.0)
NAN = math.nan

SHARE = {  # {site: by seed, then k}
    RESIDUAL: ([0.1, 0.3], [0.4, 0.8]),
    NEXT: ([0.0, 0.2], [0.1, 0.1]),
    MLP: ([0.5, 0.1], [0.2, 0.2]),
}
FLIPPED_SHARE = {RESIDUAL: (0.9, 0.7), NEXT: (0.95, 0.9), MLP: (0.8, 1.0)}  # by seed
DCE = {  # (directions, rays)
    RESIDUAL: ([(4.0, 2.0), (1.0, 2.0)], [(16.0, 1.0), (4.0, 1.0)]),
    NEXT: ([(8.0, 1.0), (2.0, 1.0)], [(32.0, 4.0), (8.0, 1.0)]),
    MLP: ([(1.0, 4.0), (1.0, 1.0)], [(1.0, 2.0), (1.0, 8.0)]),
}
FLIPPED_FVU = {  # (directions, rays), by seed
    RESIDUAL: ((0.2, 0.4), (0.2, 0.8)),
    NEXT: ((0.1, 0.8), (0.1, 0.4)),
    MLP: ((0.4, 0.2), (0.2, 0.8)),
}
SHARED = {  # (shared, null)
    RESIDUAL: ([(0.5, 0.1), (NAN, NAN)], [(0.3, 0.2), (0.2, 0.1)]),
    NEXT: ([(0.2, 0.0), (NAN, NAN)], [(0.3, 0.2), (0.2, 0.1)]),
    MLP: ([(0.3, 0.0), (NAN, NAN)], [(0.0, -0.1), (0.2, 0.1)]),
}
PLANTED = {0.0: (0.0, 0.14), 0.5: (0.4, 0.6), 1.0: (0.95, 0.97)}  # {world: by seed}


def hand_made() -> Records:
    """Every draw is its value, so that an interval is that of the two seeds."""
    records, any_of_them = Records(), TopK(4, 8, 2)

    def add(stream, site, arm, k, seed, metric, value, drawn=True, coder="own"):
        draws_B = torch.full((400,), value, dtype=torch.float64) if drawn else None
        records.add(stream, site, Arm(arm, k, seed), any_of_them, metric, value, draws_B, tokens=1, coder=coder)

    for site in SITES:
        for seed in SEEDS:
            for i, k in enumerate(KS):
                add("real", site, DIRECTIONS, k, seed, "bipolar_share", SHARE[site][seed][i])
                for arm, value in zip((DIRECTIONS, RAYS), DCE[site][seed][i], strict=True):
                    add("real", site, arm, k, seed, "dce", value)
                    add("real", site, arm, k, seed, "fvu", 0.5)  # is not asked
                lines, rays = DCE[site][seed][i]
                for arm, value in ((RAYS_M, 2 * lines), (DIRECTIONS_2M, rays / 2)):
                    add("real", site, arm, k, seed, "dce", value)
                coded = {DIRECTIONS: rays, RAYS: lines, RAYS_M: 3 * rays, DIRECTIONS_2M: lines / 4}  # as if swapped
                for arm, value in coded.items():
                    add("real", site, arm, k, seed, "dce", value, coder="omp")
                for metric, value in zip(("shared_context", "shared_context_null"), SHARED[site][seed][i], strict=True):
                    add("real", site, DIRECTIONS, k, seed, metric, value, drawn=False)
            add("sign_flip", site, DIRECTIONS, 2, seed, "bipolar_share", FLIPPED_SHARE[site][seed])
            for arm, value in zip((DIRECTIONS, RAYS), FLIPPED_FVU[site][seed], strict=True):
                add("sign_flip", site, arm, 2, seed, "fvu", value)
    for share, by_seed in PLANTED.items():
        for seed in SEEDS:
            for metric in ("true_bipolar_share", "bipolar_share", "polarity"):
                value = by_seed[seed] if metric == "bipolar_share" else 0.3
                add(world_stream(share), Site("planted", 4, 0), "planted", 6, seed, metric, value)
    return records


def observed(records: Records, seeds: tuple[int, ...] = SEEDS, sites: tuple[Site, ...] = SITES) -> dict:
    found = observe(records, sites, KS, 2, seeds, WORLDS)
    return {name: (one.value, one.low, one.high) for name, one in found.items()}


def apart(first: float, second: float) -> tuple[float, float, float]:
    """Of two seeds: their mean and the interval of t with one degree of freedom, 12.7 standard errors to each side."""
    mean, away = (first + second) / 2, 12.7062047 * abs(first - second) / 2
    return mean, mean - away, mean + away


def ratios_apart(first: float, second: float) -> tuple[float, ...]:
    return tuple(map(math.exp, apart(math.log(first), math.log(second))))


def test_every_number_by_hand():
    found = observed(hand_made())
    expected = {
        # seed 0: MLP, (.5 + .1) / 2 of .2, .1 and .3; seed 1: the first residual site, .6
        "bipolar_share": apart(0.3, 0.6),
        "sign_flip": apart(0.8, 0.7),  # the MLP's in one seed, the first residual site's in the other
        # 2, 1/2, 8 and 2 have the geometric mean 2; 16, 4, 8 and 8 have 8: what directions cost more than rays
        "dce_ratio_residual": ratios_apart(2, 8),
        "dce_ratio_mlp": ratios_apart(1 / 2, 1 / 4),  # 1/4 and 1; 1/2 and 1/8
        "dce_ratio_residual_omp": ratios_apart(1 / 2, 1 / 8),
        "dce_ratio_mlp_omp": ratios_apart(2, 4),
        "dce_ratio_m": (2, 2, 2),
        "dce_ratio_2m": (1 / 2, 1 / 2, 1 / 2),
        "dce_ratio_m_omp": (3, 3, 3),
        "dce_ratio_2m_omp": (1 / 4, 1 / 4, 1 / 4),
        "flipped_fvu_ratio": ratios_apart(2, 4),  # 2, 8 and 1/2; 4, 4 and 4: what rays leave more than directions
        "shared_context": apart(0.3, 0.1),  # .4, .2, .3 and three cells without a number; six of .1
        # of .5 either seed is .1 off, on either side; of 0 one is, by .14, which reaches further
        "planted": (0.1, 0.1, apart(0, 0.14)[2]),
    }
    assert set(found) == set(expected)
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(numbers), name


def test_what_was_not_there_is_no_number():
    assert all(map(math.isnan, observed(hand_made(), sites=(RESIDUAL, NEXT))["dce_ratio_mlp"]))
    records = hand_made()
    for key in records.values:
        if key[3] == "shared_context" and key[2].seed == 0:
            records.values[key] = NAN
    assert observed(records)["shared_context"] == pytest.approx((0.1, 0.1, 0.1))  # the other seed's
    assert all(map(math.isnan, observed(records, seeds=(0,))["shared_context"]))


def test_draws_without_a_logarithm_go_to_their_bound_and_values_are_no_number():
    nan, small = float("nan"), 1e-9
    top = torch.tensor([4.0, -1, 0, 1, 1, 0, -1, small, 1, nan, 1]).double()
    below = torch.tensor([2.0, 1, 1, -1, 0, 0, -2, 1, small, 1, nan]).double()
    expected = torch.tensor([2.0, 0.001, 0.001, 1000, 1000, 1, 1, 0.001, 1000, nan, nan]).double()
    torch.testing.assert_close(log_ratio(top, below).exp(), expected, equal_nan=True)

    records = hand_made()
    rays, directions = (records.drawn["real", MLP.hook, Arm(arm, 2, 0), "dce", "own"] for arm in (RAYS, DIRECTIONS))
    rays[1:21] = -0.001  # 20 draws of 400, of which 10 are beyond the upper end
    assert observed(records, seeds=(0,))["dce_ratio_mlp"] == pytest.approx((0.5, 0.5, 1000**0.5))  # k 4: 1
    directions[1:21] = -0.001
    assert observed(records, seeds=(0,))["dce_ratio_mlp"] == pytest.approx((0.5, 0.5, 1))  # equals, both free
    rays[1:21] = 4
    assert observed(records, seeds=(0,))["dce_ratio_mlp"] == pytest.approx((0.5, 1000**-0.5, 0.5))
    directions[0] = 0  # of one k, site and seed
    assert all(map(math.isnan, observed(records)["dce_ratio_mlp"]))
    assert observed(records)["dce_ratio_residual"] == pytest.approx(ratios_apart(2, 8))
