"""How long a search takes from SIGTERM to its end, all trainings saved.

`python -m benchmarks.stops` starts a search of the built-in demo that would train for days, asks
it to stop when each of its workers trains, as a preempted machine does, and goes on with it; fifty
times on each engine. Each must end within ten seconds, with a checkpoint of each training that is
younger than the signal, and nothing of it may live on.
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.context import PACKAGES
from speaker.common.devices import find_compute
from speaker.common.provenance import provenance
from tests.helpers import start

RESULTS = Path(__file__).parent / "results" / "stops.json"
JOBS = {"inline": 1, "processes": 2, "ray": 2}
SEARCH = ("--steps", "10000000", "--fix", "d_model=80", "--fix", "num_layers=1", "--trials", "4")
MOST_S = 10.0  # from the signal to the end
PATIENCE_S = 300.0  # with a start


def main() -> None:
    """Print a line a try and one an engine, and keep them with their origin."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--tries", type=int, default=50, help="on each engine")
    here = [name for name in JOBS if name != "ray" or find_spec("ray")]
    flags.add_argument("--engines", nargs="+", choices=JOBS, default=here)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--out", type=Path, default=RESULTS)
    arguments = flags.parse_args()
    kept: dict[str, list[dict[str, Any]]] = {}
    rng = random.Random(arguments.seed)  # noqa: S311  # no secret
    for engine in arguments.engines:
        rows = kept[engine] = []
        with tempfile.TemporaryDirectory() as home:
            for _ in range(arguments.tries):
                rows.append(stop_once(Path(home), engine, rng.uniform(0, 2)))
                print(engine, *rows[-1].items(), flush=True)
                arguments.out.write_text(_as_json(kept))
        seconds = [row["seconds"] for row in rows]
        good = sum(row["seconds"] <= MOST_S and not row["fault"] for row in rows)
        print(f"{engine}: {good} of {len(rows)} within {MOST_S:g} s and saved, median", end=" ")
        print(f"{statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s", flush=True)


def stop_once(home: Path, engine: str, pause: float) -> dict[str, Any]:
    """Start a search or go on with it, let its workers train for `pause` seconds and more, and ask
    it to stop; return the seconds that it takes, and what went wrong.
    """
    jobs, begun = JOBS[engine], time.time()
    process = start(home, "search.py", *SEARCH, "--engine", engine, "--jobs", jobs)
    while len(_saved_since(home, begun)) < jobs:
        if process.poll() is not None or time.time() > begun + PATIENCE_S:
            process.kill()
            raise SystemExit(f"the search did not train: {process.communicate()[1]}")
        time.sleep(0.05)
    time.sleep(pause)
    asked, began = time.time(), time.monotonic()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    seconds = time.monotonic() - began
    errors = process.communicate()[1]
    fault = "" if process.returncode == 128 + signal.SIGTERM else errors[-2000:] or "no end"
    if not fault and (saved := len(_saved_since(home, asked))) < jobs:
        fault = f"{saved} of {jobs} trainings were saved"
    return {"seconds": round(seconds, 2), "fault": fault}


def _saved_since(home: Path, when: float) -> list[Path]:
    """Return the checkpoints that were written after a time."""
    found = (home / "mlruns" / "checkpoints").glob("*.checkpoint")
    return [path for path in found if path.stat().st_mtime > when]


def _as_json(kept: dict[str, list[dict[str, Any]]]) -> str:
    origin = provenance(find_compute("auto", "auto"), PACKAGES)
    return json.dumps({**kept, "origin": origin}, indent=1) + "\n"


if __name__ == "__main__":
    main()
