"""Search strategies, confidence sets and calibration, replayed from the recorded trainings of ``pool.py``.

    python benchmarks/replay.py                     into benchmarks/results/replay-digits.json

A strategy proposes with the sweep's own code (``proposals.propose``); the proposal becomes the nearest configuration
of its type that it has not had, and what was recorded is what it gets. It sees one seed, spends a number of epochs
and chooses the best full training it saw. Its regret: how far the mean accuracy of other seeds of its choice is below
the best mean of the pool, in points. All strategies have the same number of epochs to spend;
the last training of one with a pruner may go beyond it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from machine import RESULTS, save
from optuna.trial import FrozenTrial, TrialState, create_trial
from pool import schedule_of, setting, trained, training
from scipy import stats

from runner.files.space import Leaf
from runner.files.sweep_file import Sweep, load_sweep
from runner.study.confidence import calibration, contest, interval, noise
from runner.study.proposals import propose


@dataclass(frozen=True)
class Pool:
    """Recorded trainings: ``full[c, s, e]`` by configuration, seed and epoch at T, ``third[c, s]`` the end at T/3."""

    sweep: Sweep
    params: list[dict[str, Any]]
    full: np.ndarray
    third: np.ndarray
    width: int

    @property
    def T(self) -> int:
        return int(self.full.shape[2])

    def truth(self, seed: int) -> np.ndarray:
        """Mean final accuracy over the seeds that a search with ``seed`` does not see."""
        return np.delete(self.full[:, :, -1], seed, axis=1).mean(axis=1)

    def types(self) -> list[str]:
        return [p["type"] for p in self.params]


def read(path: Path) -> Pool:
    """The pool of a Parquet file; what diverged has accuracy 0 from there on."""
    table = pd.read_parquet(path)
    T, n, seeds = int(table["epochs"].max()), table["config"].nunique(), table["seed"].nunique()
    full, third, params = np.zeros((n, seeds, T)), np.zeros((n, seeds)), [{}] * n
    for row in table.itertuples():
        params[row.config] = json.loads(row.params)
        curve = list(row.accuracies)
        if row.epochs == T:
            full[row.config, row.seed, : len(curve)] = curve
        elif len(curve) == row.epochs:
            third[row.config, row.seed] = curve[-1]
    width = json.loads(path.with_suffix(".json").read_text())["width"]
    return Pool(load_sweep(Path(__file__).with_name("pool.yaml"))[0], params, full, third, width)


# --------------------------------------------------------------------------------------
# Strategies.


def position(leaf: Leaf, value: Any) -> float:
    """Where a value lies in its leaf's range, from 0 to 1."""
    if leaf.kind == "choice":
        return leaf.encoded().index(value) / max(1, len(leaf.values) - 1)
    low, high = leaf.values
    if leaf.kind == "log_uniform":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def nearest(pool: Pool, wanted: dict[str, Any], had: set[int]) -> int:
    """The configuration of the wanted type that is nearest in its leaves, of those that were not had."""
    leaves = pool.sweep.schedules.leaves(wanted["type"])

    def distance(c: int) -> float:
        return sum(
            (position(leaf, pool.params[c][leaf.name]) - position(leaf, wanted[leaf.name])) ** 2 for leaf in leaves
        )

    same = [c for c, p in enumerate(pool.params) if p["type"] == wanted["type"] and c not in had]
    return min(same or [c for c in range(len(pool.params)) if c not in had], key=lambda c: distance(c) if same else c)


@dataclass
class Run:
    """One replay of a strategy: what it has had and spent."""

    pool: Pool
    seed: int
    sweep: Sweep
    history: list[FrozenTrial]
    had: list[int]
    epochs: int = 0

    def ask(self) -> int:
        """The next configuration; trials are told in order, the last ``window`` unknown to the sampler."""
        known = max(0, len(self.history) + 1 - self.sweep.search.window)
        seen = [t if i < known else _running(t) for i, t in enumerate(self.history)]
        proposed, _, _ = propose(len(self.history), seen, self.sweep)
        chosen = nearest(self.pool, dict(proposed.params), set(self.had))
        self.had.append(chosen)
        return chosen

    def tell(
        self, c: int, value: float, state: TrialState = TrialState.COMPLETE, curve: Sequence[float] = ()
    ) -> None:
        params = self.pool.params[c]
        trial = optuna.trial.FixedTrial(params)
        self.sweep.schedules.sample(trial)
        self.history.append(
            create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=trial.params,
                distributions=trial.distributions,
                intermediate_values=dict(enumerate(curve)),
            )
        )


def _running(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)


def search(run: Run, budget: int) -> int:
    """Full trainings until the budget is spent; the best one's configuration."""
    while run.epochs + run.pool.T <= budget:
        c = run.ask()
        run.tell(c, run.pool.full[c, run.seed, -1])
        run.epochs += run.pool.T
    return max(run.had, key=lambda c: run.pool.full[c, run.seed, -1])


def screened(rescaled: bool) -> Callable[[Run, int], int]:
    """T/3, then the best third at T; not rescaled, the first third of the full curve: what not to do."""

    def strategy(run: Run, budget: int) -> int:
        third = run.pool.T // 3
        rest = run.pool.T if rescaled else run.pool.T - third
        first = run.pool.third[:, run.seed] if rescaled else run.pool.full[:, run.seed, third - 1]
        n = int(budget / (third + rest / 3))
        for _ in range(n):
            c = run.ask()
            run.tell(c, first[c])
        kept = sorted(run.had, key=lambda c: -first[c])[: max(1, n // 3)]
        run.epochs = n * third + len(kept) * rest
        return max(kept, key=lambda c: run.pool.full[c, run.seed, -1])

    return strategy


def judged(judge: optuna.Study, curve: Sequence[float]) -> tuple[TrialState, int]:
    """What a study with a pruner makes of a curve: how it ends, after how many epochs."""
    trial = judge.ask()
    for epoch, value in enumerate(curve):
        trial.report(value, epoch)
        if epoch + 1 < len(curve) and trial.should_prune():
            judge.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED, epoch + 1
    judge.tell(trial, curve[-1])
    return TrialState.COMPLETE, len(curve)


def pruned(make: Callable[[int], optuna.pruners.BasePruner]) -> Callable[[Run, int], int]:
    """TPE with a pruner of Optuna's on the raw curves."""

    def strategy(run: Run, budget: int) -> int:
        judge = optuna.create_study(study_name="replay", direction="maximize", pruner=make(run.pool.T))
        ended: list[int] = []
        while run.epochs < budget and len(run.had) < len(run.pool.params):
            c = run.ask()
            curve = run.pool.full[c, run.seed]
            state, seen = judged(judge, curve)
            run.epochs += seen
            run.tell(c, curve[-1], state, curve[:seen])
            if state == TrialState.COMPLETE:
                ended.append(c)
        return max(ended or run.had, key=lambda c: run.pool.full[c, run.seed, -1])

    return strategy


STRATEGIES: dict[str, tuple[dict[str, Any], Callable[[Run, int], int]]] = {
    "random": ({"sampler": "random"}, search),
    "qmc": ({"sampler": "qmc"}, search),
    "tpe": ({"sampler": "tpe"}, search),
    "tpe, balanced": ({"sampler": "tpe", "balance": "equal"}, search),
    "tpe, rungs T/3 rescaled, T": ({"sampler": "tpe"}, screened(rescaled=True)),
    "tpe, truncated at T/3, then T": ({"sampler": "tpe"}, screened(rescaled=False)),
    "tpe, median pruner": ({"sampler": "tpe"}, pruned(lambda _: optuna.pruners.MedianPruner())),
    "tpe, hyperband": ({"sampler": "tpe"}, pruned(lambda T: optuna.pruners.HyperbandPruner(max_resource=T))),
}


def strategies(pool: Pool, replays: int, trials: int) -> dict[str, Any]:
    """Every strategy's regret, in points, over the same seeds, with as many epochs as ``trials`` full trainings."""
    found: dict[str, Any] = {}
    print(f"{trials * pool.T} epochs:")
    for name, (settings, strategy) in STRATEGIES.items():
        regrets, epochs = [], []
        for n in range(replays):
            search_ = pool.sweep.search.model_copy(update={"seed": n, **settings})
            seed = n % pool.full.shape[1]
            run = Run(pool, seed, pool.sweep.model_copy(update={"search": search_}), [], [])
            chosen = strategy(run, trials * pool.T)
            truth = pool.truth(seed)
            regrets.append(100 * float(truth.max() - truth[chosen]))
            epochs.append(run.epochs)
        wide = float(stats.sem(regrets))
        found[name] = {"regret": statistics.mean(regrets), "standard_error": wide, "epochs": statistics.mean(epochs)}
        found[name] |= {"median": statistics.median(regrets), "all": [round(r, 3) for r in regrets]}
        print(
            f"{name}: {found[name]['regret']:.2f} ± {wide:.2f} points, {found[name]['epochs']:.0f} epochs", flush=True
        )
    tpe = found["tpe"]["all"]
    for name, row in found.items():
        if name != "tpe":
            apart = np.subtract(row["all"], tpe)
            row["worse_than_tpe_p"] = float(stats.wilcoxon(apart).pvalue) if apart.any() else 1.0
    return found


# --------------------------------------------------------------------------------------
# Confidence, calibration, audit.


def residuals(pool: Pool, low: float = 0.5, like: int = 20) -> list[np.ndarray]:
    """What seeds do to every configuration that learns: the deviations from their own means, unbiased, of the
    ``like`` configurations around it in accuracy."""
    ends = pool.full[:, :, -1]
    n = ends.shape[1]
    learns = sorted((row for row in ends if row.min() > low), key=np.mean)
    apart = np.array([(row - row.mean()) * math.sqrt(n / (n - 1)) for row in learns])
    return [apart[i : i + like].ravel() for i in range(len(apart) - like)]


def confidence(pool: Pool, replays: int, arms: int = 8, seeds: int = 5) -> dict[str, Any]:
    """Contests with a known truth: arms are real means, and their noise is drawn from what real seeds did."""
    generator = np.random.default_rng(0)
    means = np.sort(pool.full[:, :, -1].mean(axis=1))[::-1][: 4 * arms]
    noises = residuals(pool)
    result: dict[str, Any] = {"replays": replays, "arms": arms, "seeds": seeds}

    def draw(truth: np.ndarray) -> dict[int, list[float]]:
        chosen = [noises[i] for i in generator.integers(len(noises), size=len(truth))]  # each arm has its own spread
        return {
            i: (m + generator.choice(r, seeds)).tolist() for i, (m, r) in enumerate(zip(truth, chosen, strict=True))
        }

    for name, truths in (
        ("real arms", lambda: generator.choice(means, arms, replace=False)),
        ("identical arms", lambda: np.full(arms, means[0])),
        ("two identical arms", lambda: np.full(2, means[0])),
    ):
        held, crowned, size = 0, 0, 0
        for _ in range(replays):
            truth = truths()
            alive = contest(draw(truth), seeds).alive
            held += any(truth[i] == truth.max() for i in alive)
            crowned += len(alive) == 1
            size += len(alive)
        result[name] = {"holds_the_best": share(held, replays), "one_crowned": share(crowned, replays)}
        result[name]["mean_size"] = size / replays
    return result


def calibrations(pool: Pool, replays: int, trials: int = 36) -> dict[str, Any]:
    """How often the interval that survivors give holds the tau of the pool's own best third."""
    generator = np.random.default_rng(0)
    inside, taus = 0, []
    for n in range(replays):
        seed = n % pool.full.shape[1]
        drawn = generator.choice(len(pool.params), trials, replace=False)
        kept = sorted(drawn, key=lambda c: -pool.third[c, seed])[: trials // 3]
        tau, low, high = calibration([pool.third[c, seed] for c in kept], [pool.full[c, seed, -1] for c in kept])
        best = np.argsort(-pool.third[:, seed])[: len(pool.params) // 3]
        truth = stats.kendalltau(pool.third[best, seed], pool.full[best, seed, -1]).statistic
        inside += low <= truth <= high
        taus.append(tau)
    return {"replays": replays, "interval_holds_truth": share(inside, replays), "tau": float(np.nanmedian(taus))}


def share(hits: int, n: int) -> tuple[float, float, float]:
    """A share with its 95 % Wilson interval; of nothing, (nan, 0, 1)."""
    if n == 0:
        return math.nan, 0.0, 1.0
    limits = stats.binomtest(hits, n).proportion_ci(method="wilson")
    return hits / n, float(limits.low), float(limits.high)


# --------------------------------------------------------------------------------------
# Published facts.


def published(pool: Pool, curves: Mapping[tuple[int, int], Sequence[list[float]]]) -> dict[str, Any]:
    """Each type's best configuration by its mean in the pool, with seeds of its own; cosine at T/3 both ways."""
    types, third = pool.types(), pool.T // 3
    scores = {types[c]: [curve[-1] for curve in found] for (c, T), found in curves.items() if pool.T == T}
    result = contest(scores, len(next(iter(scores.values()))))
    cosine = next(c for c, _ in curves if types[c] == "cosine")
    rescaled = [curve[-1] for curve in curves[cosine, third]]
    apart = np.subtract(rescaled, [curve[third - 1] for curve in curves[cosine, pool.T]])
    test = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
    measured = noise(list(scores.values()))
    return {
        "seeds": len(rescaled),
        "own_best": {k: {"mean": statistics.mean(v), "interval": interval(v)} for k, v in scores.items()},
        "confidence_set": result.alive,
        "behind": {k: vars(d) for k, d in result.differences.items()},
        "seed_deviation": measured.seed if measured else None,
        "cosine_rescaled_minus_truncated_at_a_third": [float(apart.mean()), float(test.low), float(test.high)],
    }


def again(pool: Pool, source: str, seeds: int, data_dir: str) -> dict[tuple[int, int], list[list[float]]]:
    """Trains the best configuration of every type, and the best cosine at T/3 rescaled, with fresh seeds: real
    trainings as in ``pool.py``, by configuration and epochs."""
    example, updates, device = setting(source, pool.width, pool.T, data_dir)
    means, types = pool.full[:, :, -1].mean(axis=1), pool.types()
    best = {t: max((c for c, u in enumerate(types) if u == t), key=lambda c: means[c]) for t in types}
    wanted = [(c, pool.T) for c in best.values()] + [(best["cosine"], pool.T // 3)]
    jobs = {
        (c, T, seed): training(example, schedule_of(pool.sweep, pool.params[c]), 1000 + seed, T, updates)
        for seed in range(seeds)
        for c, T in wanted
    }
    curves = dict(trained(jobs, example, device))
    return {(c, T): [curves[c, T, seed] for seed in range(seeds)] for c, T in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["digits", "cifar10"], default="digits")
    parser.add_argument("--replays", type=int, default=50, help="of each strategy")
    parser.add_argument("--contests", type=int, default=2000)
    parser.add_argument("--trials", type=int, nargs="+", default=[12, 24, 48], help="budgets, in full trainings")
    parser.add_argument("--seeds", type=int, default=10, help="fresh ones, for the best of every type")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    pool, start = read(args.out_dir / f"pool-{args.source}.parquet"), time.perf_counter()
    result = {
        "pool": f"{len(pool.params)} configurations of {len(set(pool.types()))} types, {pool.full.shape[1]} seeds",
        "published": published(pool, again(pool, args.source, args.seeds, args.data_dir)),
        "confidence": confidence(pool, args.contests),
        "calibration": calibrations(pool, 200),
        "strategies": {n * pool.T: strategies(pool, args.replays, n) for n in args.trials},
    }
    save(args.out_dir / f"replay-{args.source}.json", result | {"seconds": time.perf_counter() - start})


if __name__ == "__main__":
    main()
