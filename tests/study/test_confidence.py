"""Confidence: the set holds the best, equals are not ranked, the ledger agrees with closed forms and simulation."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from runner.study.confidence import (
    calibration,
    contest,
    interval,
    levels,
    looks,
    noise,
    power,
    seeds_needed,
    smallest_difference,
)


def replay(means, deviations, seeds, times, shared=0.7, seed=0, paired=True):
    """Contests over arms with known means, whose scores share a part of their noise in the same seed."""
    generator = np.random.default_rng(seed)
    for _ in range(times):
        block = generator.normal(size=seeds)
        own = generator.normal(size=(len(means), seeds))
        table = np.array(means)[:, None] + np.array(deviations)[:, None] * (
            shared * block + math.sqrt(1 - shared**2) * own
        )
        yield contest(dict(enumerate(table.tolist())), seeds, paired=paired)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    ("means", "deviations"),
    [
        pytest.param([0.0] * 5, [1.0] * 5, id="alike"),
        pytest.param([0.0, -0.3, -0.6, -1.0, -2.0, -4.0], [1.0] * 6, id="apart"),
        pytest.param([0.2, 0.0, 0.0, 0.0, 0.0], [0.4, 1.5, 1.5, 1.5, 1.5], id="a quiet best among noisy ones"),
    ],
)
def test_the_set_holds_the_best_in_95_of_100(means, deviations, seeds):
    held = [0 in result.alive for result in replay(means, deviations, seeds, 300)]
    assert np.mean(held) >= 0.95 - 1.64 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("arms", [2, 3, 8])
def test_no_winner_is_crowned_among_equals_in_95_of_100(arms):
    crowned = [len(result.alive) == 1 for result in replay([0.0] * arms, [1.0] * arms, 5, 300)]
    assert np.mean(crowned) <= 0.05 + 1.64 * math.sqrt(0.05 * 0.95 / 300)


def test_a_large_difference_is_found_and_ends_the_contest_early():
    result = contest({"good": [0.9, 0.91, 0.92], "bad": [0.5, 0.52, 0.51]}, seeds=10)
    assert (result.alive, result.decided) == (["good"], True)
    gap = result.differences["bad"]
    assert gap.behind == pytest.approx(0.4)
    assert (gap.low > 0, gap.seeds) == (True, 3)


def test_looking_once_at_two_arms_is_the_paired_t_test():
    generator = np.random.default_rng(1)
    for shift in np.linspace(0.2, 3.0, 15):
        a, b = generator.normal(shift, 1, 6), generator.normal(0, 1, 6)
        only = contest({"a": a.tolist(), "b": b.tolist()}, seeds=6)
        single = stats.ttest_rel(a, b)
        spent = levels(6)[6]
        late = stats.ttest_rel(a, b, alternative="greater").pvalue < spent / 2
        if only.differences["b"].seeds == 6:  # not out before
            assert (only.alive == ["a"]) == bool(late)
        assert only.differences["a"].behind == 0.0 or single.statistic < 0


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_looking_once_at_two_arms_unpaired_is_welchs_t_test(spread):
    generator, level = np.random.default_rng(1), levels(3)[3]
    for shift in np.linspace(0.2, 9.0, 15):
        a, b = generator.normal(shift, 1, 3), generator.normal(0, spread, 3)
        result = contest({"a": a.tolist(), "b": b.tolist()}, seeds=3, paired=False)
        ahead, gap = (a, result.differences["b"]) if a.mean() > b.mean() else (b, result.differences["a"])
        welch = stats.ttest_ind(ahead, a if ahead is b else b, equal_var=False)
        assert (gap.low, gap.high) == pytest.approx(welch.confidence_interval(1 - level))
        assert gap.behind == pytest.approx(abs(a.mean() - b.mean()))
        assert (len(result.alive) == 1) == (welch.pvalue < level)


def test_unpaired_arms_share_the_level_of_every_look_and_each_has_its_own_variance():
    generator, n = np.random.default_rng(2), 6
    table = {arm: generator.normal(-arm, 1 + arm, n).tolist() for arm in range(4)}
    result = contest(table, n, paired=False)
    best = max(table, key=lambda arm: sum(table[arm]))
    assert {gap.seeds for gap in result.differences.values()} == {n}  # nobody was out before
    for arm in set(table) - {best}:
        welch = stats.ttest_ind(table[best], table[arm], equal_var=False)
        expected = welch.confidence_interval(1 - 2 * levels(n)[n] / 3)
        assert (result.differences[arm].low, result.differences[arm].high) == pytest.approx((*expected,))


@pytest.mark.parametrize("arms", [2, 6])
@pytest.mark.parametrize("deviation", [1.0, 3.0])
def test_unpaired_the_set_holds_a_noisy_best_and_crowns_no_equal_where_seeds_are_no_blocks(arms, deviation):
    found = list(replay([0.0] * arms, [deviation] + [1.0] * (arms - 1), 3, 400, shared=0, paired=False))
    noise = 1.64 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean([0 in result.alive for result in found]) >= 0.95 - noise
    assert np.mean([len(result.alive) == 1 for result in found]) <= 0.05 + noise


def test_what_never_varies_is_told_apart_unpaired_and_equals_are_a_tie():
    result = contest({"a": [0.5] * 3, "b": [0.5] * 3, "c": [0.4] * 3}, seeds=3, paired=False)
    assert result.alive == ["a", "b"]
    assert result.differences["c"].behind == pytest.approx(0.1)
    alone = contest({"a": [0.5] * 3, "b": [0.2, 0.3, 0.1]}, seeds=3, paired=False).differences["b"]
    student = stats.ttest_1samp([0.2, 0.3, 0.1], 0.5).confidence_interval(1 - levels(3)[3])
    assert (0.5 - alone.high, 0.5 - alone.low) == pytest.approx((student.low, student.high))  # the other is a number
    still = noise([[0.5, 0.5], [0.5, 0.5]], paired=False)
    assert (still.seed, still.difference) == (0, 0)


def test_what_the_looks_spend_is_alpha_in_all_and_little_early():
    for seeds in (2, 3, 5, 20):
        spent = levels(seeds)
        assert sum(spent.values()) == pytest.approx(0.05)
        assert max(spent) == seeds
    assert levels(10)[3] < 0.001


def test_scores_that_are_all_alike_are_a_tie():
    result = contest({i: [0.5, 0.5, 0.5] for i in range(3)}, seeds=3)
    assert result.alive == [0, 1, 2]
    assert noise([[0.5, 0.5], [0.5, 0.5]]).difference == 0


def test_too_few_seeds_decide_nothing():
    result = contest({"a": [0.9], "b": [0.1]}, seeds=5)
    assert (result.alive, result.decided, result.differences) == (["a", "b"], False, {})


def test_the_interval_is_students():
    values = [0.91, 0.93, 0.92, 0.95]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))


def test_noise_is_measured_as_it_was_made():
    generator = np.random.default_rng(0)
    block = generator.normal(0, 0.3, 400)
    table = [(m + block + generator.normal(0, 0.4, 400)).tolist() for m in (0.0, 1.0, 2.0)]
    found = noise(table)
    assert found.seed == pytest.approx(0.5, rel=0.1)
    assert found.difference == pytest.approx(0.4 * math.sqrt(2), rel=0.1)


def test_unpaired_the_difference_of_two_arms_varies_as_two_arms_do():
    generator = np.random.default_rng(0)
    block = generator.normal(0, 0.3, 400)
    table = [(m + block + generator.normal(0, 0.4, 400)).tolist() for m in (0.0, 1.0, 2.0)]
    found = noise(table, paired=False)
    assert found.seed == noise(table).seed
    assert found.difference == pytest.approx(math.sqrt(2) * found.seed)
    assert (found.paired, noise(table).paired) == (False, True)


@pytest.mark.parametrize("arms", [2, 6])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_unpaired_power_is_that_of_welchs_t_test(seeds, arms):
    apart, generator = smallest_difference(math.sqrt(2), seeds, arms, paired=False), np.random.default_rng(0)
    good, bad = generator.normal(apart, 1, (10_000, seeds)), generator.normal(0, 1, (10_000, seeds))
    welch = stats.ttest_ind(good, bad, axis=1, equal_var=False, alternative="greater")
    assert np.mean(welch.pvalue < levels(seeds)[seeds] / max(2, arms - 1)) == pytest.approx(0.8, abs=0.015)
    assert power(apart, math.sqrt(2), seeds, arms, paired=False) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(apart * 1.001, math.sqrt(2), arms, paired=False) <= seeds


def test_unpaired_power_between_two_is_near_that_of_the_t_test_with_many_seeds():
    """Of two arms that vary alike: by a noncentral t with 2 (n - 1) degrees of freedom, Student's."""
    seeds = 50
    critical = stats.t.isf(levels(seeds)[seeds] / 2, 2 * (seeds - 1))
    for apart in (0.2, 0.5, 0.8):
        exact = stats.nct.sf(critical, 2 * (seeds - 1), apart * math.sqrt(seeds))
        assert power(apart, 1.0, seeds, paired=False) == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_power_is_that_of_contests_between_two(seeds):
    own = math.sqrt(1 - 0.7**2) * math.sqrt(2)
    apart = smallest_difference(own, seeds)
    told = np.mean([1 not in result.alive for result in replay([0.0, -apart], [1.0, 1.0], seeds, 600)])
    assert told == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("arms", [3, 6])
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_power_is_that_of_contests_of_several_in_which_all_are_in_at_the_last_look(seeds, arms):
    own = math.sqrt(1 - 0.7**2) * math.sqrt(2)
    apart = smallest_difference(own, seeds, arms, left=arms)
    assert apart < smallest_difference(own, seeds, arms)  # the pooled variance has more degrees of freedom
    told = np.mean([1 not in r.alive for r in replay([0.0, *[-apart] * (arms - 1)], [1.0] * arms, seeds, 600)])
    assert told == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("far", [1, 3], ids=["all others like the second", "all others far behind"])
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_power_is_promised_and_kept_however_many_are_in_at_the_last_look(seeds, far):
    own = math.sqrt(1 - 0.7**2) * math.sqrt(2)
    apart = smallest_difference(own, seeds, arms=6)
    means = [0.0, -apart, *[-far * apart] * 4]
    told = np.mean([1 not in result.alive for result in replay(means, [1.0] * 6, seeds, 400)])
    assert told >= 0.8 - 0.04


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_power_between_two_is_that_of_the_t_test(seeds):
    critical = stats.t.isf(levels(seeds)[seeds] / 2, seeds - 1)
    for apart in (0.5, 1.5, 4.0):
        exact = stats.nct.sf(critical, seeds - 1, apart * math.sqrt(seeds))
        assert power(apart, 1.0, seeds) == pytest.approx(exact, abs=1e-4)


def test_the_ledger_asks_for_few_seeds_more_than_a_single_test_would():
    """A seed deviation of 0.2, independent arms: 7, 16 and 63 seeds by the normal law show 0.3, 0.2 and 0.1."""
    paired = 0.2 * math.sqrt(2)
    for difference in (0.3, 0.2, 0.1):
        single = ((stats.norm.isf(0.025) + stats.norm.isf(0.2)) * paired / difference) ** 2
        assert single < seeds_needed(difference, paired) < 1.3 * single + 3
        assert seeds_needed(difference, paired) < seeds_needed(difference, paired, arms=8) < 2 * single + 4
    for seeds in (3, 5, 20):
        assert power(smallest_difference(paired, seeds), paired, seeds) == pytest.approx(0.8, abs=1e-6)
        assert seeds_needed(smallest_difference(paired, seeds) * 1.001, paired) <= seeds


def test_arms_that_were_out_early_do_not_hide_what_the_others_say_of_the_noise():
    generator = np.random.default_rng(0)
    block = generator.normal(0, 0.3, 50)
    table = [(block + generator.normal(0, 0.4, 50)).tolist() for _ in range(2)]
    alone = noise(table)
    assert noise([*table, table[0][:3]]).difference == alone.difference
    assert alone.difference == pytest.approx(0.4 * math.sqrt(2), rel=0.2)


def test_looks_are_few_and_the_last_one_keeps_most_of_alpha():
    for seeds in range(2, 200):
        at = looks(seeds)
        assert (at[-1], at) == (seeds, sorted(set(at)))
        assert at[0] >= min(3, seeds)
        assert levels(seeds)[seeds] > 0.025


def test_calibration_is_kendalls_tau_and_says_when_it_knows_nothing():
    cheap, full = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 8, 7]
    tau, low, high = calibration(cheap, full)
    assert tau == pytest.approx(stats.kendalltau(cheap, full).statistic)
    assert low < tau <= high <= 1
    assert calibration(cheap, full[::-1])[2] < 0
    assert math.isnan(calibration([1, 2, 3], [1, 2, 3])[0])
    assert math.isnan(calibration([1, 1, 1, 1], [1, 2, 3, 4])[0])


def test_a_share_has_wilsons_interval(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from replay import share

    assert share(2, 4) == pytest.approx((0.5, 0.150, 0.850), abs=1e-3)
    assert share(0, 0)[1:] == (0.0, 1.0)
