#!/usr/bin/env bash
# pyarrow 25.0.0, a Parquet file of images in one row group, read by ParquetFile.iter_batches(batch_size=16).
#
# One would guess: sixteen rows are in memory at a time, and some pages of the file.
# What happens: the whole row group is fetched ahead and stays, since pre_buffer is on; a data set that was written in
# one group is in memory as a whole, beside what is decoded of it. With pre_buffer=False and a buffer_size it is not.
#
# Seen on 2026-11-30, in a file of 384 MB (the most that Arrow held while it was read, as a share of the file):
#   as it is:                             1.0
#   pre_buffer=False, buffer_size=1 MB:   0.2
# Fails if this changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pyarrow==25.0.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

images = [np.random.default_rng(i).bytes(64_000) for i in range(6_000)]
pq.write_table(pa.table({"image": images}), "images.parquet", compression="none", use_dictionary=False)
del images
size = os.path.getsize("images.parquet")
assert pq.ParquetFile("images.parquet").num_row_groups == 1
seen = {}
for name, options in (("as it is", {}), ("pre_buffer=False", {"pre_buffer": False, "buffer_size": 2**20})):
    before, most = pa.total_allocated_bytes(), 0
    for batch in pq.ParquetFile("images.parquet", **options).iter_batches(batch_size=16):
        most = max(most, pa.total_allocated_bytes() - before)
    seen[name] = most / size
    print(f"{name}: {seen[name]:.1f}")
assert seen["as it is"] > 0.9 > 0.3 > seen["pre_buffer=False"], "this has changed"
PYTHON
