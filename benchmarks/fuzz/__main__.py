"""Mutate a valid example of every file format that the program reads, and judge what becomes of it.

`python -m benchmarks.fuzz --cases N --seed S` runs N cases in processes of their own, prints how
each format fared, and leaves what failed in the folder `--out`; `--only NUMBER` runs one case again
and shows its error. A case is drawn from seed and number alone. What may not happen: an error that
is no UserError of one line (exception), a changed file that is used though a checksum lies over it
(wrong), more than LIMIT_S seconds (hang), more than LIMIT_BYTES beyond what the process had
(memory), the end of the process (crash).
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.fuzz.cases import FAILURES, VERDICTS, Bench, Verdict
from benchmarks.fuzz.examples import make_all
from benchmarks.fuzz.pool import run_cases


def main() -> None:
    """Run cases and print a table; end with 1 where one failed."""
    flags = argparse.ArgumentParser(description="Mutated files of every format that is read.")
    flags.add_argument("--cases", type=int, default=1_000)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--format", help="of this one alone; all if not given")
    flags.add_argument("--only", type=int, metavar="NUMBER", help="run one case again")
    flags.add_argument("--out", type=Path, help="folder for what failed")
    arguments = flags.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        examples = make_all(Path(root))
        examples = [each for each in examples if arguments.format in (None, each.name)]
        if arguments.only is not None:
            print(Bench(Path(root), examples, arguments.seed).run(arguments.only, is_raising=True))
            return
        numbers = range(arguments.cases)
        bench = (Path(root), examples, arguments.seed)
        found = [*run_cases(bench, numbers, arguments.workers)]
    print(table(found))
    failed = [verdict for verdict in found if verdict.kind in FAILURES]
    for verdict in failed[:20]:
        print(
            f"{verdict.number} {verdict.form}: {verdict.kind}, {verdict.mutation}: {verdict.said}"
        )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for verdict in failed:
            text = json.dumps(vars(verdict), indent=1)
            (arguments.out / f"{arguments.seed}-{verdict.number}.json").write_text(text)
    sys.exit(bool(failed))


def table(found: list[Verdict]) -> str:
    """Return how often each format met each verdict."""
    counts = Counter((verdict.form, verdict.kind) for verdict in found)
    forms = list(dict.fromkeys(verdict.form for verdict in sorted(found, key=lambda v: v.number)))
    lines = [f"{'':<21}" + "".join(f"{kind:>11}" for kind in VERDICTS)]
    lines += [
        f"{form:<21}" + "".join(f"{counts[form, kind]:>11,}" for kind in VERDICTS) for form in forms
    ]
    totals = Counter(verdict.kind for verdict in found)
    return "\n".join([*lines, f"{'all':<21}" + "".join(f"{totals[k]:>11,}" for k in VERDICTS)])


if __name__ == "__main__":
    main()
