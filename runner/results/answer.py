"""A sweep's answer in sentences, and what would make it better, each with how to do it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..files.sweep_file import ENOUGH, Objective, Sweep
from ..files.trial import Record, baseline_of, best_first, first_of_each, label
from ..study.confidence import Noise, calibration, seeds_needed, smallest_difference
from ..study.confirm import Repeatability, Rows, Verdict
from ..study.study import Study

FEW = 5
"""Trials of a schedule below which its best init_lr is hardly known."""
MANY = 100
"""Seeds for each schedule that nobody will spend."""
WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
STAGES = {"confirm": "comparison with fresh seeds"}
"""What a stage is called, where not as it is called in files."""
LISTED = 6
"""Schedules that are behind, and named one by one."""


def sentences(
    history: Study,
    rungs: Sequence[Study],
    answer: Verdict | None,
    weights: Mapping[str, float],
    cut: Mapping[str, Sequence[Any]] | None = None,
) -> list[str]:
    """The answer: how good the baseline is, what to take, who is behind, what a seed does, and more; of a sweep that
    is under way, as far as it is known. ``cut``: how far each stage came for which there was no time."""
    sweep, records = history.sweep, history.ended()
    said = list[str]()
    if answer and answer.begun:
        said = describe(answer, sweep.objective)
    elif done := best_first(records, sweep.objective.sign):
        said = describe_search(done, sweep, answer is not None)
    first = sweep.baseline is not None
    if first and not (answer and answer.begun and today_of(answer.rows)):
        said.insert(0, describe_baseline(sweep, records))
    said[first:first] = describe_lack(history, cut or {})
    if odd := [record for record in records if record.remark]:
        how_many = f"{len(odd)} of {len(records)} trainings did not do as they were told"
        said.append(f"{how_many}; the first is {odd[0].title}: {odd[0].remark}.")
    said += [describe_calibration(rung.ended(), records, sweep) for rung in rungs]
    if weights:
        shares = ", ".join(f"{name} {share:.0%}" if len(weights) > 1 else name for name, share in weights.items())
        tpe = sweep.search.sampler == "tpe"
        biased = " The sampler looked where it was good, which flatters what it exploited." * tpe
        names = (["type"] if len(sweep.schedules.schedules) > 1 else []) + sweep.schedules.axes()
        trials = sum(record.chosen for record in records)
        hint = trials < ENOUGH * len(names)
        few = f" {trials} trials are few for {len(names)} parameters: take it as a hint." * hint
        rest = [name for name in names if name not in weights]
        others = ", ".join(rest) if len(rest) < 6 else f"the other {len(rest)} parameters"
        unknown = f" As for {others}: no more than chance explains, or tried too rarely to say." * bool(rest)
        said.append(f"What mattered: {shares}.{unknown}{few}{biased}")
    if answer and answer.strip:
        winner = f"{answer.rows[0]['name']} (trial {answer.rows[0]['trial']})"
        said.append(describe_strip(winner, answer.strip, sweep.objective))
    return said


def describe_lack(history: Study, cut: Mapping[str, Sequence[Any]]) -> list[str]:
    """How far a search came that has not come to its end, and a comparison that had no time for it."""
    ended = len(history.ended())
    if cut:
        parts = [f"{n} of {of} trainings of the {STAGES.get(stage, stage)}" for stage, (n, of, _) in cut.items()]
        option = next(iter(cut.values()))[2]
        how_many = f"Time was up ({option}) after {' and '.join(parts)}: how many depends on this machine's speed."
        return [f"{how_many} The same command with more time goes on."]
    if ended < history.target:
        return [f"The search has not ended: {ended} of {plural(history.target, 'trial')} have."]
    return []


def describe_search(done: Sequence[Record], sweep: Sweep, goes_on: bool) -> list[str]:
    """What one seed each says, in sentences; ``done``: the complete trials, best first; ``goes_on``: fresh seeds
    follow."""
    first = done[0]
    value, alone = score(first.value or 0.0, sweep.objective), len(done) == 1
    which = "the only trial, with one seed" if alone else f"the best of {len(done)} trials with one seed each"
    take = f"If you must choose now, take {first.name} (trial {first.number}, {value}): {which}"
    take = f"{take}. " if first is not baseline_of(done, sweep) else ""  # of which it has been said
    noise = "What tells the first ones apart may be no more than what another seed changes."
    if goes_on:
        return [f"The search alone, one seed each: the comparison with fresh seeds has not ended. {take}{noise}"]
    how = "With confirm: {top: 3} in the sweep file, the same command trains the best again with fresh seeds."
    return [f"{take}{noise} {how}"]


def describe_baseline(sweep: Sweep, records: Sequence[Record]) -> str:
    """How good the baseline is by one seed, where fresh ones do not say it."""
    mine, done = baseline_of(records, sweep), best_first(records, sweep.objective.sign)
    schedule = sweep.baseline.to_json() if sweep.baseline else {}
    today = today_is(schedule["type"], schedule["init_lr"])
    if mine is None:
        return f"{today} has not come to its end yet."
    if mine.value is None:
        return f"{today} {mine.outcome} in the search{f' ({mine.cause})' * bool(mine.cause)}: it is not compared."
    first, reached = done[0], score(mine.value, sweep.objective)
    if len(done) == 1:
        return f"{today} has {reached} with one seed, and there is nothing yet to compare it with."
    if first is mine:
        return f"{today} is the best of {len(done)} trials with one seed each ({reached}): keep it for now."
    best = f"{first.label} (trial {first.number}, {score(first.value or 0.0, sweep.objective)})"
    apart = difference(abs((first.value or 0.0) - mine.value), sweep.objective.unit)
    gap = f"{apart} behind" if first.value != mine.value else "as good as"
    return f"{today} is {gap} {best} with one seed each ({reached})."


def describe(verdict: Verdict, objective: Objective) -> list[str]:
    """What a confirmation says, in sentences: how good the baseline is, what to take, who is clearly behind, and what
    a seed does."""
    names, done = labels(verdict.rows), verdict.scores
    said = [_today(verdict, names, objective), _recommendation(verdict, names, objective)]
    said.append(_behind(verdict, names, objective))
    if verdict.repeatability is not None and not verdict.repeatability.same:
        said.append(describe_repeatability(verdict.repeatability, objective, len(done)))
    if verdict.noise is not None:
        seeds = max(map(len, done.values())) if verdict.contest.decided else 1  # which show nothing
        said.append(describe_noise(verdict.noise, seeds, objective.unit, len(done), verdict.left))
    today = today_of(verdict.rows)
    if lost := [names[n] for n in names if n not in done and not (today and n == today["trial"])]:
        said.append(f"Not every seed of {', '.join(lost)} came to its end: no answer to rely on.")
    return [sentence for sentence in said if sentence]


def labels(rows: Rows) -> dict[int, str]:
    """What confirmed trials are called, by their numbers: by their schedules, and trials where two share one."""
    alone = len({row["name"] for row in rows}) == len(rows)

    def trial(row: Mapping[str, Any]) -> str:
        return f" (trial {row['trial']})" * (not alone and not row.get("baseline"))

    return {row["trial"]: label(row["name"], row["type"]) + trial(row) for row in rows}


def today_of(rows: Rows) -> Mapping[str, Any] | None:
    """The baseline's row; None where it is not among them."""
    return next((row for row in rows if row.get("baseline")), None)


def today_is(kind: str, init_lr: float) -> str:
    """How a sentence on the baseline begins."""
    return f"Your schedule of today ({kind}, {init_lr:.4g})"


def headline(rows: Rows, decided: bool = True) -> str:
    """The answer of a confirmation in a few words, as the title of a figure."""
    names, done = labels(rows), [row for row in rows if row["mean"] is not None]
    alive = [row for row in done if row["in_set"]]
    if not alive:
        return "Nothing could be confirmed"
    several = _several(len(alive), len(done))
    if not decided:
        return f"Not decided yet: {several} may be best"
    first = names[alive[0]["trial"]]
    if len(done) == 1:
        return f"Only {first} was confirmed"
    if len(alive) == 1:
        return f"{first} is the best of {words(len(done))}"
    return f"{several[0].upper()}{several[1:]} may be best after {plural(alive[0]['seeds'], 'seed')}"


def _today(verdict: Verdict, names: Mapping[int, str], objective: Objective) -> str:
    """How the baseline compares with the others; empty where there is none."""
    row, result, done = today_of(verdict.rows), verdict.contest, verdict.scores
    if row is None:
        return ""
    today, number = today_is(row["type"], row["init_lr"]), row["trial"]
    if number not in done:
        return f"{today} did not come to its end with every fresh seed: no answer to rely on."
    if number not in result.alive:
        n = row["behind_seeds"]  # with so many the best one was another, perhaps
        rivals = [arm for arm, gap in result.differences.items() if gap.seeds >= n]
        best = max(rivals, key=lambda arm: float(np.mean(done[arm][:n])))
        apart, low, high = interval_of(row, objective.unit)
        return f"{today} is {apart} behind {names[best]} ({low} to {high})."
    if not result.decided:
        return f"{today} may be the best so far: nothing was shown to beat it yet."
    if len(done) == 1:
        return f"{today} has {score(row['mean'], objective)}: only it was confirmed, with nothing to compare it with."
    if len(result.alive) == 1:
        return f"{today} is the best of {words(len(done))} with 95 % confidence: keep it."
    return f"{today} may be the best: nothing was shown to beat it."


def _equal(one: float, other: float) -> bool:
    """But for rounding."""
    return math.isclose(one, other, rel_tol=1e-12)


def _recommendation(verdict: Verdict, names: Mapping[int, str], objective: Objective) -> str:
    """Which arm to take, and how sure that is; nothing where the baseline is all there is, of which it was said."""
    result, done, today = verdict.contest, verdict.scores, today_of(verdict.rows)
    mine = today["trial"] if today else None
    if not result.alive:
        return "Nothing could be confirmed: no schedule came to its end with every fresh seed."
    shared = min(len(done[number]) for number in result.alive)
    means = [float(np.mean(done[number][:shared])) for number in result.alive]
    best, first = score(objective.sign * means[0] + 0.0, objective), names[result.alive[0]]
    take = "keep" if result.alive[0] == mine else "take"
    if not result.decided:
        said = f"The comparison with fresh seeds has not ended: {_several(len(result.alive), len(done))} may be best."
        return f"{said} If you must choose now, {take} {first} ({best} with {plural(shared, 'seed')})."
    if result.alive == [mine]:
        return ""
    if len(done) == 1:
        return f"Take {first} ({best}): only it was confirmed, and there is nothing to compare it with."
    if len(result.alive) == 1:
        return f"Take {first} ({best}): the best of {words(len(done))} with 95 % confidence."
    within = f"{_several(len(result.alive), len(done))} are within noise after {shared} seeds each"
    within += f" ({', '.join(names[n] for n in result.alive)})" * (len(result.alive) < len(done))
    advice, equal = (
        f"{take} {first} ({best})",
        [n for n, m in zip(result.alive, means, strict=True) if _equal(m, means[0])],
    )
    good = "highest" if objective.sign > 0 else "lowest"
    if len(equal) > 1 and mine in equal:
        advice = f"keep {names[mine]}: no other has a {'higher' if objective.sign > 0 else 'lower'} mean ({best})"
    elif len(equal) > 1:
        advice = f"take one of {' and '.join(names[n] for n in equal)}, which have the same {good} mean ({best})"
    return f"No clear winner: {within}. If you must choose, {advice}."


def _behind(verdict: Verdict, names: Mapping[int, str], objective: Objective) -> str:
    """Who is clearly behind the best, and by how much, with simultaneous intervals; the nearest first."""
    rows = [r for r in verdict.rows if not r["in_set"] and r["behind"] is not None and not r.get("baseline")]
    out = sorted(rows, key=lambda r: r["behind"])
    parts = list[str]()
    for row in out[: LISTED if len(out) > LISTED + 1 else None]:
        apart, low, high = interval_of(row, objective.unit)
        said = f"{names[row['trial']]} is {apart}" if not parts else f"{names[row['trial']]} {apart.split()[0]}"
        parts.append(f"{said}{' behind' * (not parts)} ({low} to {high})")
    if rest := out[len(parts) :]:
        parts.append(f"and {words(len(rest))} more by {interval_of(rest[0], objective.unit)[0]} or more")
    return f"{', '.join(parts)}." if parts else ""


def interval_of(row: Mapping[str, Any], unit: str) -> tuple[str, str, str]:
    """How far an arm of a confirmation is behind, with its unit, and the ends of that one's interval."""
    points = unit == "points"
    apart, low, high = (row[key] * (100 if points else 1) for key in ("behind", "behind_low", "behind_high"))
    digits = max(0, 1 - math.floor(math.log10(abs(apart)))) if apart else 1
    digits = min(digits, 1) if points and apart > 0.5 else digits  # tenths of a point are enough
    shown, low, high = (f"{v:.{digits}f}" if round(v, digits) else f"{v:.1g}" for v in (apart, low, high))
    return with_unit(shown, unit), low, high


def with_unit(number: str, unit: str) -> str:
    """A number and its unit: ``1 point``, ``0.3 points``, ``2.5 mm``, ``3 %``."""
    if unit == "points":
        return f"{number} point{'s' * (number != '1')}"
    return f"{number} {unit}".rstrip()


def score(value: float, objective: Objective) -> str:
    """A value of the objective in words: of an accuracy in percent."""
    return f"{100 * value:.1f} %" if objective.points else with_unit(f"{value:.4g}", objective.unit)


def _several(n: int, of: int) -> str:
    """So many of so many: both, all six, two of six."""
    if n < of:
        return f"{words(n)} of {words(of)}"
    return "both" if n == 2 else f"all {words(n)}"


def words(n: int) -> str:
    """A small number as a word."""
    return WORDS[n] if n < len(WORDS) else str(n)


def difference(value: float, unit: str) -> str:
    """A difference of the objective in words: of an accuracy in points."""
    if unit != "points":
        return with_unit(f"{value:.2g}", unit)
    return with_unit(f"{100 * value:.2g}" if value < 0.995 else f"{100 * value:.0f}", unit)


def describe_repeatability(found: Repeatability, objective: Objective, arms: int) -> str:
    """How a training that was done twice ended in two ways, and what follows for the comparison of ``arms``."""

    def ended(record: Record) -> str:
        if record.value is not None:
            return f"gave {score(record.value, objective)}"
        return f"{record.outcome} ({record.cause})" if record.cause else str(record.outcome)

    which = f"trial {found.first.arm} with seed {found.first.train['seed']}"
    apart = f" ({difference(found.apart, objective.unit)} apart)" if found.apart is not None else ""
    apart = " (with other numbers on the way)" if found.apart == 0 else apart
    follows = "seeds are no blocks" + ", and schedules are compared unpaired" * (arms > 1)
    return (
        f"Not repeatable: {which} {ended(found.first)} and, trained again, {ended(found.again)}{apart}; so {follows}."
    )


def describe_noise(measured: Noise, seeds: int, unit: str = "points", arms: int = 2, left: int = 2) -> str:
    """What seeds do, what so many of them can show of ``arms``, ``left`` of them to the last look, and how many would
    show more, in a sentence."""
    said, points = partial(difference, unit=unit), unit == "points"
    moves = f"Another {'seed' if measured.paired else 'training'} moves a result by {said(measured.seed)}"
    if measured.difference < 1e-9:
        return f"{moves}, and all schedules alike."
    if seeds < 2:
        return f"{moves} (one standard deviation)."
    wanted = (0.01, 0.005, 0.002, 0.001) if points else tuple(measured.seed * f for f in (2, 1, 0.5, 0.25))
    least = smallest_difference(measured.difference, seeds, arms, left=left, paired=measured.paired)
    needed = [(_seeds_needed(w, measured, arms, left), said(w)) for w in wanted if w < least]
    needs = [f"{what} needs {n} seeds" for n, what in needed if n <= 1000 or n == needed[0][0]]
    shown = "no difference" if points and least > 1 else f"a difference of {said(least)}"
    return (
        f"{moves} (one standard deviation). {seeds} seeds detect "
        f"{shown} between {'two' if arms < 3 else f'two of {arms}'} schedules (80 % power)"
        f"{''.join(f'; {need}' for need in needs)}."
    )


def _seeds_needed(apart: float, measured: Noise, arms: int, left: int) -> int:
    """How many seeds show a difference, compared as it was."""
    return seeds_needed(apart, measured.difference, arms, left=left, paired=measured.paired)


def describe_strip(winner: str, strip: Rows, objective: Objective) -> str:
    """What the strip's changes did to the first of the table, in a sentence."""
    unit, scale, parts = f" in {objective.unit}" * bool(objective.unit), 100 if objective.points else 1, list[str]()
    if not objective.points:
        unit += ", more is better" if objective.direction == "maximize" else ", less is better"
    for row in strip:
        lost = [f"{row[how]} of {row['seeds']} {how}" for how in ("diverged", "failed") if row[how]]
        if row["difference"] is None:
            said = "diverged" if row["diverged"] == row["seeds"] else ", ".join(lost)
        else:
            apart, low, high = (f"{row[k] * scale:+.2g}" for k in ("difference", "low", "high"))
            within = f" ({low} to {high})" if math.isfinite(row["low"]) else ""
            said = ", ".join([apart + within, *lost])
        parts.append(f"{row['change']} {said}")
    return f"Around {winner}, seed by seed (mean difference{unit}, 95 % interval): {'; '.join(parts)}."


def describe_calibration(rung: Sequence[Record], full: Sequence[Record], sweep: Sweep) -> str:
    """What a rung's scores said of the full ones, on the trials that have both."""

    def key(record: Record) -> frozenset[tuple[str, Any]]:
        return frozenset(record.params.items())

    ends = {key(r): r.value for r in full if r.value is not None}
    ended = [r for r in rung if r.value is not None and key(r) in ends]
    both = [(r.value or 0.0, ends[key(r)]) for r in first_of_each(ended, key)]
    epochs = next((r.train["epochs"] for r in rung), 0)
    tau, low, high = calibration([a for a, _ in both], [b for _, b in both])
    said = f"Screening at {epochs} of {sweep.train.epochs} epochs: on the {len(both)} trials that went on, "
    if math.isnan(tau):
        return f"{said}too few to say whether its order is that of full training."
    advice = " Its order says little of the full one: search at full length (leave rungs out)." if low <= 0 else ""
    return f"{said}Kendall's tau with full training is {tau:.2f} (95 % interval {low:.2f} to {high:.2f}).{advice}"


def next_steps(
    records: Sequence[Record],
    rows: Rows,
    sweep: Sweep,
    measured: Noise | None,
    majority: float = 0.0,
    searched: Sequence[Record] | None = None,
) -> list[str]:
    """What would make the answer better, each with how to do it; most urgent first.

    ``majority`` is the accuracy of always giving the most frequent class; ``searched`` are the trials of the first
    rung, of a search that has rungs.
    """
    said = list[str]()
    best = max((a for r in records for a in r.values("val/accuracy") if math.isfinite(a)), default=1.0)
    if best < majority + (1 - majority) / 10:
        said.append(
            f"Hardly anything was learnt: the best accuracy is {best:.3g}, and always giving the most frequent class "
            f"has {majority:.3g}. More images, more epochs or another range of init_lr come first."
        )
    said += _hardly_tried(records if searched is None else searched, sweep)
    ended, full = {r.name for r in best_first(searched or [], 1)}, {r.name for r in records}
    if gone := [name for name in sweep.schedules.schedules if name in ended - full]:
        said.append(
            f"Dropped after the short stage, and not trained again: {', '.join(gone)}. The answer says nothing about "
            f"{_them(gone)} at full length; a new sweep with a larger search.keep keeps more."
        )
    alive = [row for row in rows if row["in_set"] and row["mean"] is not None]
    if len(alive) > 1 and measured is not None and measured.difference > 0:
        first, second = alive[:2]
        apart, arms = abs(first["mean"] - second["mean"]), sum(row["mean"] is not None for row in rows)
        unit = difference(apart, sweep.objective.unit)
        pair = " and ".join(f"{row['name']} (trial {row['trial']})" for row in (first, second))
        left = sum(row["in_set"] for row in rows)
        near = apart <= measured.difference / 50
        needed = math.inf if near else _seeds_needed(apart, measured, arms, max(2, left))
        if _equal(first["mean"], second["mean"]):
            said.append(f"{pair} have the same mean: how many seeds would tell them apart is not known.")
        elif needed > MANY:
            said.append(f"{pair} differ by {unit} as measured; to show that takes more than {MANY} seeds each.")
        else:
            said.append(
                f"If {pair} differ by the {unit} that was measured, about {max(needed, first['seeds'] + 1)} seeds "
                "each show it: raise confirm.seeds, and the same command goes on with them."
            )
    alike = {row["trial"] for row in rows if row["in_set"]}
    ends = {f"{r.name} (trial {r.number})": edge(r, sweep) for r in records if r.number in alike}
    for end in ("lower", "upper"):
        if at := [name for name, where in ends.items() if where == end]:
            said.append(f"init_lr at the {end} end of its range: {', '.join(at)}. A new sweep may widen it there.")
    if alike and not sweep.confirm.strip:
        winner = next(r for r in records if r.number == rows[0]["trial"])
        warmup = any(winner.schedule["warmup"].get(unit) for unit in ("fraction", "epochs", "updates"))
        needs = "its init_lr, and whether its warmup" if warmup else "its init_lr"
        said.append(
            f"How exactly {winner.name} (trial {winner.number}) needs {needs}: with confirm.strip: true in the file, "
            "the same command trains it with less and more of each."
        )
    return said


def never_ended(searched: Sequence[Record], sweep: Sweep) -> list[str]:
    """The schedules that were tried, and of which no trial came to its end."""
    said, ended, names = list[str](), {r.name for r in best_first(searched, 1)}, list(sweep.schedules.schedules)
    ways = {n: Counter(str(r.outcome) for r in searched if r.name == n) for n in names if n not in ended}
    if lost := [name for name, way in ways.items() if set(way) == {"diverged"}]:
        said.append(f"Always diverged: {', '.join(lost)}. A lower init_lr may help.")
    if others := {name: way for name, way in ways.items() if way and name not in lost}:
        causes = {r.name: f": {r.cause}" for r in searched if r.cause}
        listed = (
            f"{name} ({', '.join(f'{n} {outcome}' for outcome, n in way.items())}{causes.get(name, '')})"
            for name, way in others.items()
        )
        said.append(f"Never came to an end: {'; '.join(listed)}.")
    return said


def _hardly_tried(searched: Sequence[Record], sweep: Sweep) -> list[str]:
    """The schedules of which the search knows little or nothing, and how many trials would change that."""
    searched = [record for record in searched if record.chosen]
    said, names = never_ended(searched, sweep), list(sweep.schedules.schedules)
    tried, ended = Counter(r.name for r in searched), Counter(r.name for r in best_first(searched, 1))
    points = {name: sweep.schedules.count(name) for name in names}
    missing = [name for name in names if not tried[name]]
    if missing:
        said.append(f"Never tried: {', '.join(missing)}. The answer says nothing about {_them(missing)}.")
    few = [name for name in names if 0 < ended[name] < FEW and tried[name] < points[name]]
    if few:
        even = 1 < len(few) == len(names) and len(set(ended.values())) == 1
        listed_few = f"{ended[few[0]]} of each schedule" if even else ", ".join(f"{n} {ended[n]}" for n in few)
        said.append(f"Few trials: {listed_few}. Another init_lr may be better there.")
    wanted = {name: min(tried[name] + FEW - ended[name], points[name]) for name in [*missing, *few]}
    if wanted:
        if sweep.search.sampler == "grid":  # schedule after schedule
            more, goes_on = (
                int(sum(points.values())) - len(searched),
                " is the whole grid; the same command goes on with it.",
            )
        elif sweep.search.balance == "equal" or len(names) < 2:
            turns = Counter({name: tried[name] for name in names})
            while any(turns[name] < n for name, n in wanted.items()):
                open_ = [name for name in names if turns[name] < points[name]]
                turns[min(open_, key=turns.__getitem__)] += 1  # as the study goes on
            more = turns.total() - len(searched)
            each = " of each" * (len(names) > 1) + ", or all there are" * (min(points.values()) < FEW)
            goes_on = f" gives {FEW}{each}; the same command goes on with them."
        else:
            more = int(sum(n - tried[name] for name, n in wanted.items()))
            goes_on = " or more, and the same command goes on with them; "
            goes_on += "balance: equal, in a new sweep, gives each as many."
        said[-1] += f" In the file, search.trials: {len(searched) + more}{goes_on}"
    return said


def _them(names: Sequence[str]) -> str:
    return "them" if len(names) > 1 else "it"


def plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def edge(record: Record, sweep: Sweep) -> str | None:
    """``lower`` or ``upper`` where a trial's init_lr is in the outer twentieth of its range, else None."""
    if not record.chosen:
        return None
    for leaf in sweep.schedules.leaves(record.name):
        if leaf.name in ("init_lr", f"{record.name}.init_lr") and leaf.kind in ("uniform", "log_uniform"):
            scale = math.log if leaf.kind == "log_uniform" else float
            low, high, at = (scale(v) for v in (*leaf.values, record.params[leaf.name]))
            if at - low < (high - low) / 20:
                return "lower"
            if high - at < (high - low) / 20:
                return "upper"
    return None
