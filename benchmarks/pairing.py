"""What is lost where arms are compared seed by seed and seeds are no blocks, or unpaired and they are blocks.

    python benchmarks/pairing.py                    into benchmarks/results/pairing.json

Contests with a known truth, each by ``contest`` paired and unpaired on the same scores. An arm's scores are its mean,
an effect of the seed that all arms share, and noise of its own; both together have variance 1. The first arm is the
best one: ahead by a hair (all means are equal), or ahead of all others by a gap that the right analysis should find
in four of five.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, save
from replay import share

from runner.study.confidence import contest, smallest_difference


@dataclass(frozen=True)
class World:
    """What scores are made of."""

    shared: float
    """The share of an arm's variance that all arms have in common in the same seed."""
    best: float = 1.0
    """How many times as large the best arm's own noise is."""
    others: float = 1.0
    """The same of every other arm."""
    tails: int = 0
    """Degrees of freedom of the noise, if it is Student's t and not normal."""

    @property
    def blocks(self) -> bool:
        return self.shared > 0

    def gap(self, arms: int, seeds: int) -> float:
        """What the right analysis finds in four of five, by its own promise."""
        deviation = math.sqrt((1 - self.shared) * (self.best**2 + self.others**2))
        return smallest_difference(deviation, seeds, arms, left=arms, paired=self.blocks)

    def draw(self, generator: np.random.Generator, arms: int, seeds: int) -> np.ndarray:
        """Scores ``[arms, seeds]`` of arms whose means are 0."""
        own = generator.normal(size=(arms, seeds))
        if self.tails:
            variance = self.tails / (self.tails - 2)
            own = generator.standard_t(self.tails, size=(arms, seeds)) / math.sqrt(variance)
        own *= np.array([self.best] + [self.others] * (arms - 1))[:, None]
        return math.sqrt(1 - self.shared) * own + math.sqrt(self.shared) * generator.normal(size=seeds)


WORLDS = {
    "three quarters": World(0.75),
    "half": World(0.5),
    "a quarter": World(0.25),
    "nothing": World(0),
    "three quarters; the best varies 3 times as much": World(0.75, best=3),
    "nothing; the best varies 3 times as much": World(0, best=3),
    "nothing; all others vary 3 times as much": World(0, others=3),
    "nothing; all others vary 7 times as much": World(0, others=7),
    "nothing; heavy tails (t with 3 degrees of freedom)": World(0, tails=3),
}
"""By how much of the variance arms have in common in the same seed."""


def contests(world: World, arms: int, seeds: int, times: int) -> dict[str, Any]:
    """How often so many contests keep what they promise, and find the gap, paired and unpaired."""
    generator, gap, found = np.random.default_rng(0), world.gap(arms, seeds), Counter[tuple[str, bool]]()
    behind = np.array([0.0] + [gap] * (arms - 1))[:, None]
    for _ in range(times):
        table = world.draw(generator, arms, seeds)
        for paired in (True, False):
            equal = contest(dict(enumerate(table.tolist())), seeds, paired=paired).alive
            apart = contest(dict(enumerate((table - behind).tolist())), seeds, paired=paired).alive
            found["holds_the_best_by_a_hair", paired] += 0 in equal
            found["no_winner_among_equals", paired] += len(equal) > 1
            found["holds_the_best", paired] += 0 in apart
            found["gap_found", paired] += 1 not in apart
    names = dict.fromkeys(name for name, _ in found)
    both = ((True, "paired"), (False, "unpaired"))
    return {"gap": gap} | {how: {name: share(found[name, p], times) for name in names} for p, how in both}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contests", type=int, default=4000, help="of each case")
    parser.add_argument("--arms", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    cases, start = list[dict[str, Any]](), time.perf_counter()
    for name, world in WORLDS.items():
        for arms in args.arms:
            for seeds in args.seeds:
                case = {"shared": name, "blocks": world.blocks, "arms": arms, "seeds": seeds}
                cases.append(case | contests(world, arms, seeds, args.contests))
                print(f"{name}: {arms} arms, {seeds} seeds", flush=True)
    save(
        args.out_dir / "pairing.json",
        {"contests": args.contests, "cases": cases, "seconds": time.perf_counter() - start},
    )


if __name__ == "__main__":
    main()
