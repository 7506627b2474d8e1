import gzip
import io
import os
import shutil
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from speaker.common import zips
from speaker.common.errors import UserError
from speaker.sources import archive
from speaker.sources.archive import unpack
from speaker.sources.homework import unpack_parts
from tests.helpers import write_corpus

MANIFESTS = ("mapping.json", "metadata.json", "testdata.json")
Member = tuple[tarfile.TarInfo, bytes]


def tree(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pack_folder(folder: Path, tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return the .tar.gz of a folder, as `tar` writes it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", format=tar_format) as tar:
        tar.add(folder, folder.name)
    return stream.getvalue()


def split(data: bytes, count: int) -> dict[str, bytes]:
    """Cut an archive into parts, by their names."""
    size = -(-len(data) // count)
    return {
        f"Dataset.tar.gz.parta{'abcdefgh'[i]}": data[i * size : (i + 1) * size]
        for i in range(count)
    }


def write_parts(folder: Path, files: dict[str, bytes]) -> list[Path]:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in sorted(files)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in the folder that the homework's archive holds."""
    folder = tmp_path_factory.mktemp("source") / "Dataset"
    write_corpus(folder, speakers=2, per_speaker=2, test=1)
    return folder


def member(name: str, data: bytes = b"", **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def raw(header: bytes, data: bytes = b"") -> bytes:
    """Return a member with a header as it is, but for its checksum, and its content."""
    header = header[:148] + b" " * 8 + header[156:]
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + data + bytes(-len(data) % 512)


def tar(members: Iterable[Member | bytes], end: bytes = bytes(1024)) -> bytes:
    pieces = [
        one if isinstance(one, bytes) else raw(one[0].tobuf(tarfile.USTAR_FORMAT), one[1])
        for one in members
    ]
    return b"".join(pieces) + end


def whole(dataset: Path) -> list[Member]:
    """Return the members of a good archive."""
    return [member(f"Dataset/{name}", data) for name, data in tree(dataset).items()]


def refused(tmp_path: Path, files: dict[str, bytes]) -> str:
    """Unpack parts that must be refused, see that nothing is left of it, and return the error."""
    paths = write_parts(tmp_path / "parts", files)
    with pytest.raises(UserError) as caught:
        unpack_parts(paths, tmp_path / "in" / "corpus")
    assert tree(tmp_path / "parts") == files
    assert {path.name for path in tmp_path.iterdir()} == {"parts", "in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {".corpus.lock"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
@pytest.mark.parametrize("parts", [1, 4])
def test_unpacks_what_tar_packs(dataset: Path, tmp_path: Path, tar_format: int, parts: int) -> None:
    paths = write_parts(tmp_path / "parts", split(pack_folder(dataset, tar_format), parts))
    count = unpack(paths, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)
    assert count == len(tree(dataset)) == 8


def test_a_corpus_is_put_in_place_once(dataset: Path, tmp_path: Path) -> None:
    paths = write_parts(tmp_path / "parts", split(pack_folder(dataset), 3))
    assert unpack_parts(paths, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)
    assert not unpack_parts(paths, tmp_path / "corpus")


def test_known_extras_and_harmless_headers_are_passed_over(dataset: Path, tmp_path: Path) -> None:
    extras = [
        member("./._Dataset", b"mac"),
        member("Dataset/", type=tarfile.DIRTYPE),
        member("Dataset/._Dataset", b"x" * 513),
        member("Dataset/log_melspectrogram.pt", b"y" * 2_000_000),
        member("Dataset/sox_effects.pt"),
        member("sox_effects.pt"),
        member("pax", b"19 mtime=1234567.5\n23 SCHILY.xattr.a=\xff\n=\0\n", type=b"x"),
        member("pax", b"12 comment=\n", type=b"g"),
    ]
    dotted = [member(f"./{info.name}", data) for info, data in whole(dataset)]
    old = [
        raw(b"\0".join((info.tobuf()[:156], info.tobuf()[157:])), data) for info, data in dotted[:1]
    ]
    paths = write_parts(
        tmp_path / "parts", split(gzip.compress(tar([*extras, *old, *dotted[1:]])), 2)
    )
    unpack(paths, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)


SHADOWS = [
    "._Dataset", "Dataset/._mapping.json", "Dataset/._uttr-a.pt", "Dataset/.DS_Store", ".DS_Store",
    "__MACOSX/._Dataset", "__MACOSX/Dataset/._mapping.json", "Dataset/Thumbs.db",
]  # fmt: skip


def test_what_a_mac_adds_is_left_out(dataset: Path, tmp_path: Path) -> None:
    folders = [
        member(name, type=tarfile.DIRTYPE)
        for name in ("Dataset/", "__MACOSX/", "__MACOSX/Dataset/")
    ]
    shadows = [member(name, b"\0\5\x16\7") for name in SHADOWS]
    (tmp_path / "parts").mkdir()
    data = gzip.compress(tar([*folders, *shadows[:4], *whole(dataset), *shadows[4:]]))
    (tmp_path / "parts" / "Dataset.tar.gz").write_bytes(data)
    unpack([tmp_path / "parts" / "Dataset.tar.gz"], tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)


@pytest.mark.parametrize("top", ["hw4/", "ml2023springhw4/Dataset/", ""])
def test_a_repacked_archive_may_have_another_folder(
    dataset: Path, tmp_path: Path, top: str
) -> None:
    folders = [member(name, type=tarfile.DIRTYPE) for name in (["./"] if not top else [top])]
    members = [member(f"{top or './'}{name}", data) for name, data in tree(dataset).items()]
    paths = write_parts(tmp_path / "parts", {"x.tar.gz": gzip.compress(tar([*folders, *members]))})
    unpack(paths, tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)


def test_a_corpus_is_in_one_folder(dataset: Path, tmp_path: Path) -> None:
    members = [member("hw4/mapping.json", b"{}"), *whole(dataset)]
    message = refused(tmp_path, split(gzip.compress(tar(members)), 1))
    assert "must be a manifest or uttr-NAME.pt in hw4/, but is neither" in message


NOT_GZIP: list[tuple[Callable[[list[Member]], bytes], str]] = [
    (tar, "but this is a tar; unpack it with tar -xf, then use the folder"),
    (lambda _: b"", "but this is an empty file; fetch it again"),
    (
        lambda _: b"<!doctype html><title>Sign in</title>",
        "but this is a web page; open it in a browser",
    ),
    (
        lambda _: b"version https://git-lfs.github.com/spec/v1\noid",
        "is a Git LFS pointer; run git lfs pull",
    ),
    (lambda _: b"Rar!\x1a\7\1\0", "but this is a rar archive; unpack it with unrar x, then use"),
    (
        lambda members: gzip.compress(tar(members)) + bytes(4 << 20),
        "its last 4,194,304 bytes are zeros",
    ),
]


@pytest.mark.parametrize(("make", "rule"), NOT_GZIP, ids=range(len(NOT_GZIP)))
def test_what_is_not_an_archive_is_named(
    dataset: Path, tmp_path: Path, make: Callable[[list[Member]], bytes], rule: str
) -> None:
    assert rule in refused(tmp_path, {"Dataset.tar.gz.partaa": make(whole(dataset))})


@pytest.mark.timeout(60)
def test_a_part_with_room_reserved_is_refused_at_once(dataset: Path, tmp_path: Path) -> None:
    """Python's gzip would pass over a gigabyte of zeros one by one."""
    (path,) = write_parts(tmp_path / "parts", {"x.tar.gz": gzip.compress(tar(whole(dataset)))})
    os.truncate(path, 1 << 30)
    with pytest.raises(UserError, match="a download that was not finished"):
        unpack([path], tmp_path / "corpus")


def test_a_little_padding_is_passed_over(dataset: Path, tmp_path: Path) -> None:
    data = gzip.compress(tar(whole(dataset))) + bytes(10_000)
    unpack(write_parts(tmp_path / "parts", {"x.tar.gz": data}), tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)


def zipped(
    members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], packed: int = zipfile.ZIP_DEFLATED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packed) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, data in members:
            archive.writestr(name, data, packed)
    return stream.getvalue()


def zip_member(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def in_zip(dataset: Path, top: str = "Dataset/") -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return [(f"{top}{name}", data) for name, data in tree(dataset).items()]


@pytest.mark.parametrize("top", ["Dataset/", "", "ml2023springhw4/Dataset/"])
@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_unpacks_a_zip(dataset: Path, tmp_path: Path, top: str, packed: int) -> None:
    others = [(name, b"mac") for name in SHADOWS]
    others += [
        (f"{top}log_melspectrogram.pt", b"x"),
        ("sample_submission.csv", b"Id"),
        ("more/", b""),
    ]
    data = zipped([*others, *in_zip(dataset, top)], packed)
    paths = write_parts(tmp_path / "parts", {"hw4.zip": data})
    assert unpack(paths, tmp_path / "corpus") == 8
    assert tree(tmp_path / "corpus") == tree(dataset)


BAD_IN_ZIP: list[tuple[str | zipfile.ZipInfo, bytes, str]] = [
    ("../uttr-a.pt", b"x", "must have a path that stays in its folder"),
    ("Dataset/../../uttr-a.pt", b"x", "must have a path that stays in its folder"),
    ("/etc/passwd", b"x", "must have a path that stays in its folder"),
    ("Dataset\\uttr-a.pt", b"x", "must have a path that stays in its folder"),
    ("C:\\x", b"x", "must have a path that stays in its folder"),
    ("Dataset//uttr-a.pt", b"x", "must have a path that stays in its folder"),
    ("Dataset/mapping.json", b"{}", "must stand in it once, but stands twice"),
    ("Dataset/uttr-a.pt", b"", "must have 1 to 268,435,456 bytes, but has 0"),
    (zip_member("Dataset/uttr-a.pt", 0o120777), b"/etc/passwd", "but is of mode 120777"),
    (zip_member("x", 0o010644), b"", "but is of mode 10644"),
    ("other/metadata.json", b"{}", "must hold one corpus, but holds 2"),
]


@pytest.mark.parametrize(("name", "data", "rule"), BAD_IN_ZIP, ids=range(len(BAD_IN_ZIP)))
def test_a_zips_member_that_breaks_a_rule_is_refused(
    dataset: Path, tmp_path: Path, name: str | zipfile.ZipInfo, data: bytes, rule: str
) -> None:
    assert rule in refused(tmp_path, {"x.zip": zipped([*in_zip(dataset), (name, data)])})


def without(
    members: list[tuple[str | zipfile.ZipInfo, bytes]], word: str
) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return [(name, data) for name, data in members if word not in str(name)]


def set_flags(data: bytes, flags: int) -> bytes:
    """Return a zip whose last listed member has these flags."""
    at = data.rindex(b"PK\1\2") + 8
    return data[:at] + flags.to_bytes(2, "little") + data[at + 2 :]


BAD_ZIPS: list[tuple[Callable[[Path], bytes], str]] = [
    (lambda dataset: zipped(in_zip(dataset))[:-30], "it is cut or damaged: fetch it again"),
    (lambda dataset: zipped(in_zip(dataset))[:2_000], "it is cut or damaged: fetch it again"),
    (lambda dataset: flip(zipped(in_zip(dataset), zipfile.ZIP_STORED), 5_000), "Bad CRC-32"),
    (lambda dataset: set_flags(zipped(in_zip(dataset)), 1), "must not be encrypted, but is"),
    (lambda dataset: zipped(in_zip(dataset), zipfile.ZIP_LZMA), "is packed by method 14"),
    (
        lambda dataset: zipped(without(in_zip(dataset), "mapping")),
        "'Dataset/mapping.json' must be there, but is missing",
    ),
    (
        lambda _: zipped([("Dataset.tar.gz.partaa", b"x")]),
        "the zip holds an archive, not its files; unzip",
    ),
    (lambda _: zipped([("a.txt", b"x")]), "but has no metadata.json among its 1 members"),
    (
        lambda dataset: zipped([*in_zip(dataset), *[(f"{i}", bytes(40 << 20)) for i in range(3)]]),
        "must unpack to at most 50 times its size",
    ),
    (
        lambda dataset: zipped([*in_zip(dataset), ("Dataset/uttr-a.pt", bytes((256 << 20) + 1))]),
        "must unpack to at most 50 times its size",
    ),
]


@pytest.mark.parametrize(("make", "rule"), BAD_ZIPS, ids=range(len(BAD_ZIPS)))
def test_a_zip_that_is_not_right_is_refused(
    dataset: Path, tmp_path: Path, make: Callable[[Path], bytes], rule: str
) -> None:
    assert rule in refused(tmp_path, {"x.zip": make(dataset)})


def test_a_zip_that_says_less_than_it_holds_is_refused(dataset: Path, tmp_path: Path) -> None:
    """What a member declares is what is written at most, and its checksum is then wrong."""
    data = bytearray(zipped([*in_zip(dataset), ("Dataset/uttr-a.pt", bytes(90 << 20))]))
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = (1_000).to_bytes(4, "little")
    assert "it is cut or damaged" in refused(tmp_path, {"x.zip": bytes(data)})


def test_a_zip_in_parts_is_joined_by_the_user(dataset: Path, tmp_path: Path) -> None:
    files = split(zipped(in_zip(dataset)), 2)
    message = refused(tmp_path, files)
    command = message.partition("but this is in parts; ")[2]
    assert command.startswith("cat ")
    subprocess.run(command, shell=True, check=True)  # noqa: S602  # as a user would
    assert unpack([tmp_path / "parts" / "Dataset.zip"], tmp_path / "corpus") == 8


def test_the_members_of_a_zip_are_counted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = zipped([*in_zip(dataset), *[(f"{number}", b"") for number in range(20)]])
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_MEMBERS", 20)
        assert "fewer than 20 members, but has 28" in refused(tmp_path, {"x.zip": data})
    shutil.rmtree(tmp_path / "parts")
    monkeypatch.setattr(zips, "MAX_LIST_BYTES", 1_000)
    assert "must list its members in at most 1,000 bytes" in refused(tmp_path, {"x.zip": data})


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def size_field(name: str, size: bytes) -> bytes:
    header = tarfile.TarInfo(name).tobuf()
    return raw(header[:124] + size.ljust(12, b"\0") + header[136:])


def name_field(name: bytes) -> bytes:
    return raw(name.ljust(100, b"\0") + tarfile.TarInfo("x").tobuf()[100:])


GOOD = "Dataset/uttr-good.pt"
NEITHER = "must be a manifest or uttr-NAME.pt"
BAD_MEMBERS: list[tuple[Member | bytes, str, str]] = [
    (
        member(GOOD, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        GOOD,
        "regular file or a folder, but is of type b'2'",
    ),
    (member(GOOD, type=tarfile.LNKTYPE, linkname="Dataset/mapping.json"), GOOD, "type b'1'"),
    (member("Dataset", type=tarfile.SYMTYPE, linkname="/etc"), "Dataset", "type b'2'"),
    (member(GOOD, type=tarfile.CHRTYPE), GOOD, "type b'3'"),
    (member(GOOD, type=tarfile.BLKTYPE), GOOD, "type b'4'"),
    (member(GOOD, type=tarfile.FIFOTYPE), GOOD, "type b'6'"),
    (member(GOOD, type=tarfile.CONTTYPE), GOOD, "type b'7'"),
    (member(GOOD, type=tarfile.GNUTYPE_SPARSE), GOOD, "type b'S'"),
    (
        member("././@LongLink", b"Dataset/x\0", type=tarfile.GNUTYPE_LONGNAME),
        "@LongLink",
        "type b'L'",
    ),
    (
        member("././@LongLink", b"Dataset/x\0", type=tarfile.GNUTYPE_LONGLINK),
        "@LongLink",
        "type b'K'",
    ),
    (member(GOOD, type=b"M"), GOOD, "type b'M'"),
    (member("pax", b"17 path=/etc/no\n\n", type=b"x"), "pax", "'path'"),
    (member("pax", b"19 linkpath=/etc/x\n", type=b"x"), "pax", "'linkpath'"),
    (member("pax", b"10 size=1\n", type=b"g"), "pax", "'size'"),
    (member("pax", b"12 mtime=12\n10 size=1\n", type=b"x"), "pax", "'size'"),
    (member("pax", b"22 GNU.sparse.major=1\n", type=b"x"), "pax", "'GNU.sparse.major'"),
    (member("pax", b"nonsense", type=b"x"), "pax", "malformed"),
    (member("pax", b"8 size=1\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"99 mtime=1\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"9 mtime1\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"5 =1\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"3 \n7 x=ab\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"999999999999999999999 a=1\n", type=b"x"), "pax", "malformed"),
    (member("pax", b"13 comment=a\n" * 1000, type=b"x"), "pax", "at most 8,192 bytes"),
    (size_field(GOOD, b"\xff" * 12), GOOD, "1 to 268,435,456 bytes, but has -1"),
    (size_field(GOOD, b"-1"), GOOD, "1 to 268,435,456 bytes, but has -1"),
    (size_field(GOOD, b"2000000001"), GOOD, "1 to 268,435,456 bytes, but has 268435457"),
    (
        size_field("Dataset/mapping.json", b"400000001"),
        "Dataset/mapping.json",
        "1 to 67,108,864 bytes",
    ),
    (
        size_field("Dataset/sox_effects.pt", b"\x80" + b"\xff" * 11),
        "Dataset/sox_effects.pt",
        "0 to 268,435,456 bytes",
    ),
    (member("Dataset/", type=tarfile.DIRTYPE, size=512), "Dataset", "no folder other than"),
    (member("Dataset/more/", type=tarfile.DIRTYPE), "Dataset/more", "no folder other than"),
    (member("Dataset/uttr-good.pt/", type=tarfile.DIRTYPE), GOOD, "no folder other than"),
    (member("../", type=tarfile.DIRTYPE), "..", "no folder other than"),
    (member("./", type=tarfile.DIRTYPE), ".", "no folder other than"),
    (member("._Dataset/", type=tarfile.DIRTYPE), "._Dataset", "no folder other than"),
    (member("Dataset"), "Dataset", NEITHER),
    (member("../uttr-a.pt"), "../uttr-a.pt", NEITHER),
    (member("Dataset/../uttr-a.pt"), "Dataset/../uttr-a.pt", NEITHER),
    (member("Dataset/../../uttr-a.pt"), "Dataset/../../uttr-a.pt", NEITHER),
    (member("Dataset//uttr-a.pt"), "Dataset//uttr-a.pt", NEITHER),
    (member("./../Dataset/uttr-a.pt"), "./../Dataset/uttr-a.pt", NEITHER),
    (member("././Dataset/uttr-a.pt"), "././Dataset/uttr-a.pt", NEITHER),
    (member("/Dataset/uttr-a.pt"), "/Dataset/uttr-a.pt", NEITHER),
    (member(".//Dataset/uttr-a.pt"), ".//Dataset/uttr-a.pt", NEITHER),
    (member("/etc/passwd"), "/etc/passwd", NEITHER),
    (member("Dataset\\uttr-a.pt"), r"Dataset\\uttr-a.pt", NEITHER),
    (member("Dataset/uttr-..\\a.pt"), r"Dataset/uttr-..\\a.pt", NEITHER),
    (member("Dataset/uttr-a.pt\n"), r"Dataset/uttr-a.pt\n", NEITHER),
    (member("Dataset/uttr-.pt"), "Dataset/uttr-.pt", NEITHER),
    (member("Dataset/uttr-a.pt.exe"), "Dataset/uttr-a.pt.exe", NEITHER),
    (member("Dataset/UTTR-a.pt"), "Dataset/UTTR-a.pt", NEITHER),
    (member("Dataset/a/uttr-a.pt"), "Dataset/a/uttr-a.pt", NEITHER),
    (member("Other/uttr-a.pt"), "Other/uttr-a.pt", NEITHER),
    (member("uttr-a.pt"), "uttr-a.pt", NEITHER),
    (member("mapping.json"), "mapping.json", NEITHER),
    (member("Dataset/testlabels.csv"), "Dataset/testlabels.csv", NEITHER),
    (member(""), "''", NEITHER),
    (member("Dataset/uttr-\N{GREEK SMALL LETTER ALPHA}.pt"), "Dataset/uttr-", NEITHER),
    (name_field(b"Dataset/uttr-\xff.pt"), r"Dataset/uttr-\\xff.pt", "UTF-8"),
    (member("Dataset/uttr-empty.pt"), "Dataset/uttr-empty.pt", "must have 1 to"),
    (member("../._x"), "../._x", NEITHER),
    (member("Dataset/.DS_Store/x"), "Dataset/.DS_Store/x", NEITHER),
    (member("__MACOSX/x"), "__MACOSX/x", NEITHER),
    (member("__MACOSX/../", type=tarfile.DIRTYPE), "__MACOSX/..", "no folder other than"),
    (member("Dataset/._x", type=tarfile.SYMTYPE, linkname="/etc"), "Dataset/._x", "type b'2'"),
    (size_field("Dataset/._x", b"2000000001"), "Dataset/._x", "0 to 268,435,456 bytes"),
    (member("Dataset/mapping.json", b"{}"), "Dataset/mapping.json", "stands twice"),
    (member("./Dataset/mapping.json", b"{}"), "./Dataset/mapping.json", "stands twice"),
]


@pytest.mark.parametrize(("bad", "name", "rule"), BAD_MEMBERS, ids=range(len(BAD_MEMBERS)))
def test_a_member_that_breaks_a_rule_is_refused(
    dataset: Path, tmp_path: Path, bad: Member | bytes, name: str, rule: str
) -> None:
    message = refused(tmp_path, split(gzip.compress(tar([*whole(dataset), bad])), 3))
    assert rule in message
    assert name in message
    assert "Dataset.tar.gz.partac: the archive's member" in message


@pytest.mark.parametrize("name", ["Dataset/", "Dataset/._Dataset"])
def test_folders_and_extras_stand_once_too(dataset: Path, tmp_path: Path, name: str) -> None:
    kind = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    message = refused(
        tmp_path, split(gzip.compress(tar([*[member(name, type=kind)] * 2, *whole(dataset)])), 1)
    )
    assert "stands twice" in message


def test_a_long_name_is_shown_in_part(tmp_path: Path) -> None:
    message = refused(tmp_path, split(gzip.compress(tar([member("a" * 90 + "/" + "b" * 90)])), 1))
    assert "a" * 79 + " must be" in message


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_must_be_there(dataset: Path, tmp_path: Path, name: str) -> None:
    members = [one for one in whole(dataset) if one[0].name != f"Dataset/{name}"]
    assert f"'Dataset/{name}' must be there" in refused(
        tmp_path, split(gzip.compress(tar(members)), 1)
    )


@pytest.mark.parametrize("listed", ["labelled", "test"])
def test_a_listed_file_must_be_there(dataset: Path, tmp_path: Path, listed: str) -> None:
    manifest = (
        dataset / ("metadata.json" if listed == "labelled" else "testdata.json")
    ).read_text()
    gone = next(one for one in whole(dataset) if one[0].name.removeprefix("Dataset/") in manifest)
    members = [one for one in whole(dataset) if one[0].name != gone[0].name]
    message = refused(tmp_path, split(gzip.compress(tar(members)), 1))
    assert "1 are missing" in message
    assert gone[0].name.removeprefix("Dataset/") in message


def test_the_manifests_are_checked(dataset: Path, tmp_path: Path) -> None:
    members = [
        (info, data) for info, data in whole(dataset) if not info.name.endswith("mapping.json")
    ]
    message = refused(
        tmp_path, split(gzip.compress(tar([*members, member("Dataset/mapping.json", b"{}")])), 1)
    )
    assert "holds no corpus" in message
    assert "speaker2id" in message


def cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda members: gzip.compress(tar(members, end=b"")), "without the blocks of zeros"),
        (
            lambda members: gzip.compress(tar(members, end=bytes(511))),
            "without the blocks of zeros",
        ),
        (
            lambda members: gzip.compress(tar(members, end=bytes(512) + b"more" * 128)),
            "something follows",
        ),
        (
            lambda members: gzip.compress(tar(members, end=bytes(3_000_000) + b"!")),
            "something follows",
        ),
        (lambda members: gzip.compress(tar(members)[:-2048]), "ends within a member"),
        (lambda members: gzip.compress(tar([*members, b"x" * 512])), "header of a member"),
        (lambda members: gzip.compress(tar(members)) + b"garbage", "Not a gzipped file"),
        (lambda members: gzip.compress(tar(members)) + gzip.compress(b"more"), "something follows"),
        (lambda members: gzip.compress(tar(members))[:-1], "ended before"),
        (lambda members: gzip.compress(tar(members))[:-8], "ended before"),
        (lambda members: gzip.compress(tar(members))[:-8] + bytes(8), "CRC check failed"),
        (lambda members: cut(gzip.compress(tar(members)), 0.5), "ended before"),
        (lambda members: cut(gzip.compress(tar(members)), 0.001), "ended before"),
        (lambda _: b"Sign in", "Not a gzipped file"),
        (lambda _: gzip.compress(b""), "ends within"),
    ],
)
def test_a_cut_or_damaged_archive_is_refused(
    dataset: Path, tmp_path: Path, spoil: Callable[[list[Member]], bytes], rule: str
) -> None:
    message = refused(tmp_path, {"Dataset.tar.gz.partaa": spoil(whole(dataset))})
    assert rule in message
    assert "Dataset.tar.gz.partaa" in message
    assert "cut, damaged, missing or out of order" in message


def test_a_flipped_bit_never_changes_a_file(dataset: Path, tmp_path: Path) -> None:
    data = pack_folder(dataset)
    noticed = 0
    for number in range(40):
        position = 10 + number * (len(data) - 10) // 40
        flipped = (
            data[:position] + bytes([data[position] ^ (1 << number % 8)]) + data[position + 1 :]
        )
        paths = write_parts(tmp_path / f"parts-{number}", split(flipped, 2))
        try:
            unpack(paths, tmp_path / f"corpus-{number}")
            assert tree(tmp_path / f"corpus-{number}") == tree(dataset), (
                "it may stand for the same run of zeros"
            )
        except UserError:
            noticed += 1
    assert noticed > 30


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda parts: parts.update(partab=parts["partac"], partac=parts["partab"]), "partab"),
        (lambda parts: parts.update(partab=os.urandom(len(parts["partab"]))), "partab"),
        (lambda parts: parts.update(partab=parts["partaa"]), "partab"),
        (lambda parts: parts.update(partac=b""), "partac"),
        (lambda parts: parts.update(partac=parts["partac"][:-1]), "partac"),
        (lambda parts: parts.pop("partac"), "partab"),
        (lambda parts: parts.update(partaa=parts["partab"]), "partaa"),
    ],
)
def test_the_part_where_reading_failed_is_named(
    tmp_path: Path, spoil: Callable[[dict[str, bytes]], object], culprit: str
) -> None:
    write_corpus(tmp_path / "source" / "Dataset")
    files = {
        name[-6:]: data
        for name, data in split(pack_folder(tmp_path / "source" / "Dataset"), 3).items()
    }
    spoil(files)
    (tmp_path / "target").mkdir()
    message = refused(tmp_path / "target", files)
    assert f"parts/{culprit}: the archive cannot be read on here" in message


def test_a_bomb_is_stopped_by_its_ratio(dataset: Path, tmp_path: Path) -> None:
    bombs = [member(f"Dataset/uttr-{i}.pt", bytes(40 << 20)) for i in range(3)]
    assert "at most 50 times its size" in refused(
        tmp_path, split(gzip.compress(tar([*whole(dataset), *bombs])), 2)
    )


def test_a_bomb_behind_the_archives_end_is_stopped(dataset: Path, tmp_path: Path) -> None:
    data = gzip.compress(tar(whole(dataset), end=bytes(120 << 20)))
    assert "at most 50 times its size" in refused(tmp_path, split(data, 2))


def test_members_are_counted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    headers = [member("pax", type=b"x")] * 20
    assert "fewer than 20 members" in refused(
        tmp_path, split(gzip.compress(tar([*headers, *whole(dataset)])), 1)
    )


def test_more_small_members_than_their_bytes_are_worth_are_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200,000 of them, in 3 MB, took 24 seconds."""
    monkeypatch.setattr(archive, "FREE_MEMBERS", 40)
    shadows = [member(f"D/._{number}") for number in range(400)]
    data = gzip.compress(tar([*whole(dataset), *shadows]))
    assert len(data) > 100 * 40
    text = refused(tmp_path, split(data, 1))
    assert "have at most 40 members and one for each 100 bytes, but goes beyond that" in text


def test_a_long_list_is_refused_before_an_object_is_made_of_each_member(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = zipped([*in_zip(dataset), *[(f"{number}", b"") for number in range(20)]])
    monkeypatch.setattr(archive, "MAX_MEMBERS", 20)
    monkeypatch.setattr("zipfile.ZipInfo", None)
    assert "fewer than 20 members, but has 28" in refused(tmp_path, {"x.zip": data})


def test_bytes_are_counted(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(tar(whole(dataset)))
    monkeypatch.setattr(archive, "MAX_BYTES", len(gzip.decompress(data)) - 1)
    assert "bytes, but goes beyond" in refused(tmp_path, split(data, 1))


def test_contents_are_copied_in_pieces(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "CHUNK", 100)
    unpack(write_parts(tmp_path / "parts", split(pack_folder(dataset), 3)), tmp_path / "corpus")
    assert tree(tmp_path / "corpus") == tree(dataset)
