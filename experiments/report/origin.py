"""Where a study's numbers come from: what its run says, in the order that a reader asks."""

from experiments.report.study import Study

# Of the run's params: shown apart, or among the tags.
APART = ("space", "protocol.", "version.", "corpus", "objective", "direction", "seed", "preset")


def facts_of(study: Study) -> dict[str, str]:
    """Return what is known of a study's data, space, search, machine and code, by name."""
    tags, params = study.tags, study.params
    count = f"{study.utterances:,} utterances: " if study.utterances else ""
    facts = {
        "corpus": f"{tags.get('corpus', '')} {tags.get('corpus.digest', '')[:12]}",
        "whole": f"{count}{tags.get('protocol.whole', '')}",
        "crops": tags.get("protocol.crops", ""),
        "space": "; ".join(_below(params, "space.", ": ")),
        "fixed": ", ".join(
            f"{key} {value}" for key, value in params.items() if not key.startswith(APART)
        ),
        "search": ", ".join(_search(study)),
        "machine": f"{tags.get('device', '')} {tags.get('device.fallbacks', '')}",
        "code": _code(tags),
        "versions": ", ".join(sorted(_below(tags, "version.", " "))),
        "winner's run": study.winner.run_id if study.winner else "",
    }
    return {key: value.strip() for key, value in facts.items() if value.strip()}


def _search(study: Study) -> list[str]:
    known = {**study.tags, **study.params}
    return [
        f"{key} {known[key]}" for key in ("sampler", "pruner", "seed", "preset") if key in known
    ]


def _code(tags: dict[str, str]) -> str:
    if not (commit := tags.get("mlflow.source.git.commit", "")):
        return ""
    changes = {"true": ", with changes that are in no commit", "false": ", without changes"}
    return f"commit {commit[:12]}{changes.get(tags.get('git.dirty', ''), '')}"


def _below(values: dict[str, str], prefix: str, between: str) -> list[str]:
    """Return the values whose names begin with a prefix, each with the rest of its name."""
    return [
        f"{key.removeprefix(prefix)}{between}{value}"
        for key, value in values.items()
        if key.startswith(prefix)
    ]
