"""What survives what: real sweeps in real processes, killed, cut off, starved and lied to.

    python benchmarks/faults                          everything, into benchmarks/results/faults.json (50 minutes)
    python benchmarks/faults kills --share 0.2        a fifth of one part
    python benchmarks/faults kills --seed 7           with other random instants

Every part counts its cases and names those that went wrong; the command fails where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import failpoints
import files
import kills
import outages
import storage
from machine import RESULTS, save

PARTS = {
    "kills": kills.run,
    "failpoints": failpoints.run,
    "outages": outages.run,
    "storage": storage.run,
    "files": files.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases, which the seed chooses (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() and args.parts else {}
    for name in args.parts or PARTS:
        start = time.perf_counter()
        found[name] = PARTS[name](args) | {"seed": args.seed, "seconds": round(time.perf_counter() - start)}
        print(name, json.dumps({k: v for k, v in found[name].items() if k != "points"}), flush=True)
        save(args.out, found)
    return int(any(found[name]["wrong"] for name in args.parts or PARTS))


if __name__ == "__main__":
    raise SystemExit(main())
