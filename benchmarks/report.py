"""The README's tables of what was measured, from the result files: ``python benchmarks/report.py`` prints them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from machine import RESULTS

HEAD = (
    "machine",
    "case",
    "P0",
    "P1",
    "ours, one lane",
    "ours, all lanes",
    "× P0",
    "× P1",
    "a sweep, × P0, × P1",
    "engine",
    "of GEMM peak",
)
NOT = "not measured"
FORESEEN = (
    ("68,000 to 77,000", "65,000 to 78,000", "1.0 to 1.4"),
    ("220,000", "230,000 to 290,000", "2.7 to 3.9"),
)
"""Of those: one graph, compiled, several slots; a model of convolution rates, bytes and launches, before any GPU."""


def table(paths: Iterable[Path]) -> str:
    """Steady images per second, medians, as a markdown table."""
    results = [json.loads(path.read_text()) for path in sorted(paths)]
    rows = [row(result) for result in results if {"rates", "alone"} & result.keys()]
    return grid(HEAD, rows)


def row(result: dict[str, Any]) -> list[str]:
    rates, cuda = result.get("rates") or result["alone"], result["device"] == "cuda"
    speed = {name: values["median"] for name, values in rates["images_per_second"].items()}
    ours, peers = speed["all lanes"], ("P0", "P1")
    sweep, wanted = result.get("sweep"), [f"{peer} / ours" for peer in peers]
    ratios = [f"{sweep['ratios'][key]:.1f}" if key in sweep["ratios"] else NOT for key in wanted] if sweep else []
    return [
        (result["gpu"] if cuda else f"{result['cpu']}, {result['cores']} cores") + few(rates["images_per_second"], 5),
        f"{result['case']}, batch {result['batch_size']}",
        *(f"{speed[name]:,.0f}" if name in speed else NOT for name in (*peers, "one lane", "all lanes")),
        *(f"{ours / speed[name]:.1f}" if name in speed else NOT for name in peers),
        ", ".join(ratios) + few(sweep["wall_seconds"], 3) if sweep else NOT,
        result["engine"],
        f"{rates['distance']['all lanes']['share_of_gemm']:.0%}" if "distance" in rates else NOT,
    ]


def few(seen: dict[str, Any], wanted: int) -> str:
    """Said where some arm had fewer rounds than the benchmark's own."""
    rounds = min(len(values["all"]) for values in seen.values())
    return f" (only {rounds} round{'s' * (rounds > 1)})" * (rounds < wanted)


def on_a_gpu(paths: Iterable[Path]) -> str:
    """One good training on CIFAR-10 and the real sweep, where a GPU has shown them (``gpu.py``)."""
    found = [r for r in (json.loads(path.read_text()) for path in sorted(paths)) if r["device"].startswith("cuda")]
    trained = next((r for r in found if "test_accuracy" in r.get("training", {})), None)
    swept = next((r for r in found if "outcomes" in r.get("sweep", {})), None)
    first, second, epochs = NOT, NOT, 30
    if trained is not None:
        accuracy, seconds = trained["training"]["test_accuracy"], trained["training"]["seconds"]
        n, range_ = len(accuracy["all"]), f"{accuracy['min']:.1%} to {accuracy['max']:.1%}"
        first = f"{accuracy['median']:.1%} on the test split ({f'{range_}, {n} seeds' if n > 1 else 'one seed'})"
        first, epochs = f"{first}, {seconds['median']:.0f} s each; {trained['gpu']}", trained["training"]["epochs"]
        first += f". The images: {trained['training']['images']}" * ("images" in trained["training"])
    if swept is not None:
        told = swept["sweep"]
        ended = ", ".join(f"{n} {outcome}" for outcome, n in told["outcomes"].items())
        answer = told["answer"][0] if told["answer"] else f"No report (exit code {told['exit_code']})."
        second = f"{told['size']}: {told['seconds']:.0f} s; {ended}. {answer} ({swept['gpu']})"
    said = " (publicly said to reach 92-93 %)" * (epochs == 30)
    what = f"CIFAR-10, small-stem ResNet-18, one-cycle, {epochs} epochs{said}"
    return grid(("on a GPU", ""), [(what, first), ("`sweeps/cifar10.yaml`", second)])


def predictions(path: Path) -> str:
    """What the design foresaw for one GPU, and what was seen there."""
    found = json.loads(path.read_text())
    head = ("images per second", "foreseen", f"seen ({found['gpu']})")
    rows = []
    for seen, (plain, compiled, times) in zip(found["cases"], FORESEEN, strict=True):
        case, before = f"{seen['case']}, batch {seen['batch_size']}", seen["before"]
        one, many = (seen["images_per_second"][lanes]["median"] for lanes in ("one lane", "all lanes"))
        kernels, time = seen["kernels_per_update"], seen["microseconds_of_kernels_per_update"]
        floor = seen["floor_seconds_per_50000_images"]
        seconds = " and ".join(f"{value:.2f} s" for value in seen["seconds_per_50000_images"].values())
        overlap = f"an update: {kernels:.0f} kernels of {time:,.0f} µs, which overlap"
        said = f"{one:,.0f} ({overlap}); before {before['one lane']['median']:,.0f}"
        wide = f"{many:,.0f}, {many / one:.2f} times one; before {before['all lanes']:,.0f} with {before['lanes']}"
        rows += [
            [f"{case}: a graph", plain, f"before {seen['earlier']['not_compiled']['one lane']['median']:,.0f}"],
            [f"{case}: compiled", compiled, said],
            [f"{case}: {seen['lanes']} lanes", f"{times} times one", wide],
            [f"{case}: 50,000 images, one lane and all", f"at best {floor} s", seconds],
        ]
    seen = found["cases"][0]
    rates = seen["earlier"]["convolutions_tflops"]
    own = {name: rate for name, rate in rates.items() if "bench" not in name}
    first, inner = ([r for name, r in own.items() if name.startswith("3>") == stem] for stem in (True, False))
    convolved = f"{min(inner)} to {max(inner)}; of 3 channels {min(first)} to {max(first)}"
    start = seen["trial_start_seconds"]
    starts = f"{1e3 * start['median']:.1f} ms; with a new seed {1e3 * start['new_seed']:.0f} ms"
    rows += [
        ["cuDNN's 3x3 convolutions in bf16, TFLOP/s", "250 to 500", convolved],
        ["start of a trial on a warm lane", "under 0.1 ms", starts],
        ["weights and optimizer state of a slot", "90 MB", f"{seen['slot_megabytes']:.0f} MB"],
    ]
    return grid(head, rows) + "\n"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def sweeps(folder: Path) -> str:
    """A whole sweep of ours and of what one would write by hand, and what a second lane brings."""
    peers, lanes = (json.loads((folder / f"{name}.json").read_text()) for name in ("peers", "lanes"))
    what = f"a small sweep, {peers['trials']} trials of {peers['epochs']} epochs"
    head = (what, "seconds (median, range)", "times ours", "times ours with the plain loop")
    rows = []
    for found in peers["contenders"].values():
        times = found["seconds"]
        ratios = [f"{found[r]['median']:.1f}" if r in found else "1" for r in ("ratio_to_ours", "ratio_to_reference")]
        rows.append([found["how"], f"{times['median']:.0f} ({times['min']:.0f} to {times['max']:.0f})", *ratios])
    one, wide = (f"{lanes[f'ratio_to_1_lane_{n}']:.2f}" for n in ("1_thread", "2_threads"))
    setting = f"{peers['cpu']}, {peers['cores']} cores"
    return (
        f"{grid(head, rows)}\n\n({setting}.) Two lanes of the plain loop train {one} times as many images as one "
        f"with one thread, {wide} times as many as one with two.\n"
    )


def strategies(result: dict[str, Any]) -> str:
    """What every search strategy's choice was worth, in replays of one pool, by the epochs that it had."""
    budgets = result["strategies"]
    most = budgets[max(budgets, key=int)]
    head = ("strategy", *(f"{epochs} epochs" for epochs in budgets))
    rows = [
        [name, *(f"{by[name]['regret']:.2f} ± {by[name]['standard_error']:.2f}" for by in budgets.values())]
        for name in sorted(most, key=lambda name: most[name]["regret"])
    ]
    return grid(head, rows)


def types(result: dict[str, Any]) -> str:
    """Every type at its own best, with fresh seeds."""
    found = result["published"]
    rows = []
    for name, own in sorted(found["own_best"].items(), key=lambda item: -item[1]["mean"]):
        behind = "{behind:.4f} behind after {seeds} seeds".format(**found["behind"][name])
        best = "yes" if name in found["confidence_set"] else behind
        rows.append([name, f"{own['mean']:.4f}", "{:.4f} to {:.4f}".format(*own["interval"]), best])
    return grid(("type", "mean", "95 %", "may be best"), rows)


def trust(result: dict[str, Any]) -> str:
    """What replays with a known truth say of the confidence sets and the calibration."""
    sets, head = result["confidence"], ("promise", "kept in", "95 % interval")

    def kept(found: list[float], opposite: bool = False) -> list[str]:
        value, low, high = [1 - found[0], 1 - found[2], 1 - found[1]] if opposite else found
        return [f"{value:.1%}", f"{low:.1%} to {high:.1%}"]

    rows = [
        [f"the set holds the best of {sets['arms']} real arms", *kept(sets["real arms"]["holds_the_best"])],
        [f"no winner among {sets['arms']} identical arms", *kept(sets["identical arms"]["one_crowned"], True)],
        ["no winner among two identical arms", *kept(sets["two identical arms"]["one_crowned"], True)],
        ["the calibration's interval holds the pool's tau", *kept(result["calibration"]["interval_holds_truth"])],
    ]
    return grid(head, rows)


def evidence(path: Path) -> str:
    """The tables of what was replayed."""
    result = json.loads(path.read_text())
    budgets, found = result["strategies"], result["published"]
    pool = f"{result['pool']} ({path.name.removeprefix('replay-').removesuffix('.json')}, narrow ResNet-18)"
    replays = len(next(iter(next(iter(budgets.values())).values()))["all"])
    apart = "{:.1f} points (95 %: {:.1f} to {:.1f})".format(
        *(100 * v for v in found["cosine_rescaled_minus_truncated_at_a_third"])
    )
    return (
        f"Regret of the chosen schedule, in points ± its standard error, in {replays} replays from {pool}; a seed "
        f"moves one training by {100 * found['seed_deviation']:.1f} points:\n\n{strategies(result)}\n\nThe best of "
        f"every type in that pool, trained again with {found['seeds']} fresh seeds:\n\n{types(result)}\n\nA cosine "
        f"compressed to a third of the epochs ends {apart} above the same cosine cut off there. The promises, in "
        f"{result['confidence']['replays']} contests and {result['audit']['replays']} screenings with a known truth:"
        f"\n\n{trust(result)}\n"
    )


def pairing(path: Path) -> str:
    """What the two comparisons keep of their promises, the least of several numbers of seeds, and find with each."""
    result, rows, both = json.loads(path.read_text()), list[tuple[str, ...]](), ("paired", "unpaired")
    seeds = sorted({case["seeds"] for case in result["cases"]})
    for (shared, arms), cases in groupby(result["cases"], lambda case: (case["shared"], case["arms"])):
        several = sorted(cases, key=lambda case: case["seeds"])
        kept = (
            " / ".join(f"{min(case[how][promise][0] for case in several):.1%}" for how in both)
            for promise in ("holds_the_best_by_a_hair", "no_winner_among_equals")
        )
        found = (", ".join(f"{case[how]['gap_found'][0]:.0%}" for case in several) for how in both)
        rows.append((shared, str(arms), *kept, *found))
    listed = f"{', '.join(map(str, seeds[:-1]))}, {seeds[-1]} seeds"
    head = ("shared in a seed", "arms", "holds the best", "no winner", f"paired: finds, {listed}", "unpaired: finds")
    return f"{result['contests']} contests for each number (paired / unpaired):\n\n{grid(head, rows)}\n"


def overhead(path: Path) -> str:
    """What the command itself costs, beside training."""
    found = json.loads(path.read_text())
    busy, *idle = found["results"]
    where = f"{found['cpu']}, {found['cores']} cores"
    share, seconds = busy["overhead_share_at_full_lanes"], busy["epoch_seconds"]
    each = " and ".join(f"{1000 * r['wall_seconds'] / r['trials']:.0f} ms in a sweep of {r['trials']}" for r in idle)
    return (
        f"What the command itself takes, with the study in a SQLite file ({where}): of {found['lanes']} lanes whose "
        f"epochs last {seconds} s, {share:.1%} of their time; for a trial of {idle[0]['epochs']} epochs, {each}. "
        "MLflow follows in the background.\n"
    )


def own(path: Path) -> str:
    """What a training of one's own costs, beside the training itself."""
    found = json.loads(path.read_text())
    where = f"{found['cpu']}, {found['cores']} cores, one lane"
    return (
        f"What a training of one's own costs in a sweep ({where}): an epoch of {found['epoch_seconds']:.1f} s takes "
        f"{found['share_of_an_epoch']:.1%} longer than its work alone; between two trials on a warm lane lie "
        f"{1000 * found['function_seconds']:.0f} ms for a function and {1000 * found['command_seconds']:.0f} ms for "
        "a command.\n"
    )


def faults(path: Path) -> str:
    """How many of each fault there were, and how many did harm."""
    found = json.loads(path.read_text())
    parts = ("kills", "failpoints", "outages", "storage", "files")
    kills, points, outages, storage, files = (found[part] for part in parts)
    said = ", ".join(f"{n} of a {who}" for who, n in kills["kills"].items())
    slept = f"training never waited longer than {outages['longest_wait_of_training_seconds']:.2f} s"
    rows = [
        (f"`kill -9` at random instants: {said}, in {kills['sweeps']} sweeps", sum(kills["kills"].values()), kills),
        (f"`kill -9` before and after every step: {points['failpoints']} failpoints", points["kills"], points),
        (f"outages of {len(outages['kinds'])} kinds; {slept}", outages["cases"], outages),
        (", ".join(_families(storage["cases"])), len(storage["cases"]), storage),
        ("; ".join(files["kinds"].values()), files["cases"], files),
    ]
    counted = [(fault, str(cases), str(len(part["wrong"]))) for fault, cases, part in rows]
    return grid(("fault", "cases", "lost, doubled, or another result"), counted) + "\n"


def _families(cases: Iterable[str]) -> list[str]:
    """The names of cases, those that differ in a number alone counted once."""
    return list(dict.fromkeys(re.sub(r" after \d+.*| for \d+.*", "", case) for case in cases))


if __name__ == "__main__":
    print(table(RESULTS.glob("speed-*.json")))
    for found in sorted(RESULTS.glob("replay-*.json")):
        print(evidence(found))
