#!/usr/bin/env bash
# MLflow 3.17.2 on a SQLite store that MLflow 2.22.1 has made: a client that only asks for the experiments.
#
# One would guess: it refuses. Its own error for such a store says to take a backup and to run `mlflow db upgrade`.
# What happens: where the newer version has tables that the older one had not, creating the store runs all migrations,
# in silence, before it comes to that check. The older client, which may be a team's server, cannot use the store any more.
#
# Seen on 2026-11-30:
#   2.22.1 has made it: 0584bdc529eb
#   3.17.2 has looked at it: dc11669786a5
#   2.22.1 looks again: CommandError: Can't locate revision identified by 'dc11669786a5'
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 2.22.1 3.17.2; do
  python3 -m venv "$version"
done
2.22.1/bin/pip install -q mlflow==2.22.1 sqlalchemy==2.0.44 # with SQLAlchemy 2.1 it cannot be imported
3.17.2/bin/pip install -q mlflow==3.17.2
cat >look.py <<'PYTHON'
import logging
import sqlite3
import sys

from mlflow import MlflowClient

logging.disable(logging.CRITICAL)
try:
    MlflowClient("sqlite:///store.db").search_experiments()
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(0)
print(*sqlite3.connect("store.db").execute("SELECT version_num FROM alembic_version").fetchone())
PYTHON
export MLFLOW_DISABLE_TELEMETRY=true
made=$(2.22.1/bin/python look.py 2>/dev/null)
looked=$(3.17.2/bin/python look.py 2>/dev/null)
again=$(2.22.1/bin/python look.py 2>/dev/null)
printf '2.22.1 has made it: %s\n3.17.2 has looked at it: %s\n2.22.1 looks again: %s\n' "$made" "$looked" "$again"
[ "$made" != "$looked" ] && [ "$looked" = dc11669786a5 ] && [[ $again == "CommandError: Can't locate revision"* ]]
