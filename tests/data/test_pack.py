import json
import os
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speaker.common.errors import UserError
from speaker.common.seeding import uniform
from speaker.data.corpus import Corpus, read_corpus, read_mels
from speaker.data.pack import PADDING, Pack, check_pack, length_buckets, open_pack
from tests.helpers import refused, write_corpus


def test_holds_every_utterance_in_half_precision(corpus: Corpus, pack: Pack) -> None:
    assert len(pack) == 60
    assert pack.frames.dtype == torch.float16
    assert pack.speakers == corpus.speakers
    for row in (0, 17, 59):
        mels = read_mels(corpus, corpus.utterances[row])
        got, length = pack.gather(torch.tensor([row]), 0, len(mels))
        assert length is not None
        assert length.item() == len(mels)
        assert torch.equal(got[0], mels.half().float())
        assert pack.labels[row] == corpus.utterances[row].speaker


def test_is_built_once_and_opened_again(corpus: Corpus, tmp_path: Path) -> None:
    first = open_pack(corpus, tmp_path)
    (file,) = tmp_path.glob("*/frames.f16")
    made = file.stat().st_mtime_ns
    second = open_pack(corpus, tmp_path)
    assert file.stat().st_mtime_ns == made
    assert first.digest == second.digest
    assert torch.equal(first.frames, second.frames)


def test_the_digest_follows_the_features(pack: Pack, tmp_path: Path) -> None:
    write_corpus(tmp_path / "same")
    write_corpus(tmp_path / "other", seed=1)
    assert open_pack(read_corpus(tmp_path / "same"), tmp_path / "packs").digest == pack.digest
    assert open_pack(read_corpus(tmp_path / "other"), tmp_path / "packs").digest != pack.digest


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path / "tiny")
    broken = read_corpus(tmp_path / "tiny")
    path = broken.folder / broken.utterances[-1].feature_path
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(UserError):
        open_pack(broken, tmp_path / "packs")
    assert not [
        entry for entry in (tmp_path / "packs").iterdir() if not entry.name.endswith(".lock")
    ]
    path.write_bytes(whole)
    assert len(open_pack(broken, tmp_path / "packs")) == 60


def test_a_cut_pack_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    open_pack(corpus, tmp_path)
    (file,) = tmp_path.glob("*/frames.f16")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(UserError, match="delete it and run again"):
        open_pack(corpus, tmp_path)
    os.truncate(file.parent / "index.safetensors", 3 << 30)
    with pytest.raises(UserError, match="delete it and run again"):
        open_pack(corpus, tmp_path)
    for name, content in (("pack.json", b"{"), ("index.safetensors", b"no")):
        (file.parent / name).write_bytes(content)
        with pytest.raises(UserError, match="delete it and run again"):
            open_pack(corpus, tmp_path)


def test_a_changed_description_or_index_is_noticed(corpus: Corpus, tmp_path: Path) -> None:
    folder = open_pack(corpus, tmp_path).folder
    about = json.loads((folder / "pack.json").read_text())
    changed = {**about, "speakers": about["speakers"][::-1]}
    (folder / "pack.json").write_text(json.dumps(changed))
    assert "must be a whole pack" in refused(lambda: open_pack(corpus, tmp_path))
    (folder / "pack.json").write_text(json.dumps({**changed, "sha256": ""}))
    assert open_pack(corpus, tmp_path).speakers == corpus.speakers[::-1], "an older program's"
    (folder / "pack.json").write_text(json.dumps(about))
    index = load_file(folder / "index.safetensors")
    save_file({**index, "labels": index["labels"].flip(0)}, folder / "index.safetensors")
    assert "must be a whole pack" in refused(lambda: open_pack(corpus, tmp_path))


def test_changed_frames_are_found_when_asked_for(corpus: Corpus, tmp_path: Path) -> None:
    assert "there is no pack" in refused(lambda: check_pack(corpus, tmp_path))
    folder = open_pack(corpus, tmp_path).folder
    assert check_pack(corpus, tmp_path) == folder
    frames = bytearray((folder / "frames.f16").read_bytes())
    frames[7] ^= 1
    (folder / "frames.f16").write_bytes(frames)
    open_pack(corpus, tmp_path)
    assert "have changed" in refused(lambda: check_pack(corpus, tmp_path))


def test_gather_pads_and_counts(pack: Pack) -> None:
    rows = torch.tensor([3, 8])
    mels, lengths = pack.gather(rows, torch.tensor([0, 5]), 200)
    assert lengths is not None
    assert lengths.tolist() == [int(pack.lengths[3]), int(pack.lengths[8]) - 5]
    for i in range(2):
        assert (mels[i, lengths[i] :] == PADDING).all()
    start = int(pack.offsets[8]) + 5
    assert torch.equal(mels[1, : lengths[1]], pack.frames[start : start + int(lengths[1])].float())


def test_crops_start_anywhere_and_stay_inside(pack: Pack) -> None:
    row = int(pack.lengths.argmax())
    rows = torch.full((4_000,), row)
    starts = pack.crop_starts(rows, uniform(4_000, 0), 24)
    slack = pack.longest - 24
    assert set(starts.tolist()) == set(range(slack + 1))
    assert (torch.bincount(starts).float() - 4_000 / (slack + 1)).abs().max() < 5 * (
        4_000 / (slack + 1)
    ) ** 0.5
    assert pack.crop_starts(rows, torch.ones(4_000), 24).max() == slack
    assert pack.crop_starts(rows, uniform(4_000, 0), 1_000).max() == 0


def test_buckets_hold_each_once_within_the_bound() -> None:
    lengths = torch.randint(1, 300, (500,), generator=torch.Generator().manual_seed(0))
    lengths[7] = 5_000
    seen = []
    for positions, width in length_buckets(lengths, 1_000):
        assert width == lengths[positions].max()
        assert len(positions) * width <= 1_000 or len(positions) == 1
        seen += positions.tolist()
    assert sorted(seen) == list(range(500))
    assert list(length_buckets(torch.tensor([], dtype=torch.int64), 10)) == []


def test_another_process_maps_the_same_file(pack: Pack) -> None:
    sent = ForkingPickler.dumps(pack)
    assert len(sent) < 1_000, "what is sent is a path, not frames"
    again = pickle.loads(sent)  # noqa: S301  # our own
    assert again.digest == pack.digest
    assert torch.equal(again.frames, pack.frames)


def test_whole_crops_are_gathered_alike_without_lengths(pack: Pack) -> None:
    rows = (pack.lengths >= 20).nonzero().flatten()
    starts = pack.crop_starts(rows, uniform(len(rows), "test"), 20)
    mels, lengths = pack.gather(rows, starts, 20)
    assert lengths is not None
    assert bool((lengths == 20).all())
    unpadded, none = pack.gather(rows, starts, 20, is_padded=False)
    assert none is None
    assert torch.equal(unpadded, mels)
