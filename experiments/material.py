"""What every trial of a search shares: the data on its device, how it is scored, and where the numbers come from."""

from dataclasses import dataclass
from pathlib import Path

from speaker.check import check_quickly
from speaker.corpus import Corpus, read_corpus
from speaker.devices import find_device
from speaker.evaluation import Protocol
from speaker.origin import origin
from speaker.pack import Pack, open_pack
from speaker.synthesis import build_demo


@dataclass(frozen=True)
class Material:
    """What every trial of a search shares: the data, how it is scored, and where it comes from."""

    corpus: Corpus
    pack: Pack
    protocol: Protocol
    origin: dict[str, str]

    def tags(self) -> dict[str, str]:
        """Return the tags of a run on this material."""
        protocols = {f"protocol.{name.rpartition('_')[2]}": text for name, text in self.protocol.describe().items()}
        return {"corpus": self.corpus.name, "corpus.digest": self.pack.digest, **protocols, **self.origin}


def prepare(data: Path | None, device_name: str, state: Path) -> Material:
    """Read a corpus, or make the demo corpus in the folder `state`, and put its pack on a device.

    Raises UserError for a corpus or a device that cannot be used.
    """
    device = find_device(device_name)
    folder = data or state / "demo"
    if data is None and not folder.exists():
        print(f"No --data given: making the demo corpus of invented speakers in {folder}, once.")
        build_demo(folder)
    corpus = read_corpus(folder)
    warnings = check_quickly(corpus)
    if warnings.counts:
        print("\n".join(warnings.lines("warnings")))
    pack = open_pack(corpus, state / "packs")
    return Material(corpus, pack.to(device), Protocol(), origin(device))
