"""What a prediction leaves beside its CSV: class probabilities, and a note of what made them."""

import io
import json
from pathlib import Path

from torch import Tensor

from speaker.common.errors import UserError
from speaker.common.paths import write_output
from speaker.data.corpus import Corpus
from speaker.data.labels import HEADER


def write_probabilities(path: Path, corpus: Corpus, probabilities: Tensor) -> None:
    """Write class probabilities (test utterances, speakers) in Parquet: `Id`,
    then a column for each speaker.

    Raises UserError for a speaker who is called `Id`: nothing reads two columns of one name.
    """
    if HEADER[0] in corpus.speakers:
        raise UserError(
            f"--probabilities needs a column for each speaker beside {HEADER[0]}, but one is "
            "called so"
        )
    import pyarrow as pa  # late: only this needs it, and it takes a while
    import pyarrow.parquet as pq

    ids = pa.array([utterance.feature_path for utterance in corpus.test], pa.string())
    columns = [ids, *(pa.array(column.numpy()) for column in probabilities.T.contiguous())]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names=[HEADER[0], *corpus.speakers]), stream)
    write_output(path, stream.getvalue())


def write_sidecar(path: Path, content: dict[str, object]) -> None:
    """Write what a prediction was made by, as JSON."""
    write_output(path, json.dumps(content, indent=1).encode())
