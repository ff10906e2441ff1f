import resource
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from d4lens.data.archive import Archive, Limits, SafeZip, natural_key, publish_archive, zip_member
from d4lens.errors import D4LensError


def test_entries_come_in_order_and_litter_is_skipped(small_tree, pack):
    files = dict(reversed(small_tree.items()))
    files["dataset/train/no/10.npy"] = small_tree["dataset/train/no/1.npy"]
    files["dataset/truth.csv"] = b"path\n"
    litter = {
        "__MACOSX/dataset/train/no/._1.npy": b"fork",
        "dataset/train/no/._1.npy": b"fork",
        "dataset/.DS_Store": b"",
        "dataset/README.md": b"read",
    }
    with Archive(pack(files | litter)) as archive:
        paths = [entry.path for entry in archive.entries]
        assert archive.counts()["train"] == {"no": 5, "sphere": 4, "vort": 4}
        assert archive.counts()["val"] == {"no": 2, "sphere": 2, "vort": 2}
        assert archive.beside == {"truth.csv": "dataset/truth.csv"}
        archive.verify()
    assert paths[:6] == [*(f"train/no/{n}.npy" for n in (1, 2, 3, 4, 10)), "train/sphere/1.npy"]
    assert paths[-1] == "val/vort/2.npy"


def test_natural_order():
    assert sorted(["10.npy", "b", "2.npy", "a/10", "a/9", ""], key=natural_key) == [
        "",
        "2.npy",
        "10.npy",
        "a/9",
        "a/10",
        "b",
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "dataset/train/axion/1.npy",
            "'dataset/train/axion' is an unknown class folder; the classes are no, sphere and vort",
        ),
        ("dataset/test/no/1.npy", "'dataset/test' is no known folder"),
        ("dataset/train/1.npy", "beside the class folders"),
        ("dataset/train/no/notes.txt", "not an .npy file"),
        ("dataset/train/no/deep/1.npy", "not an .npy file in a class folder"),
        ("1.npy", "lies outside"),
        ("other/1.npy", "lies outside"),
    ],
)
def test_a_file_out_of_place_is_named(small_tree, pack, name, sentence):
    with pytest.raises(D4LensError, match=r"lenses\.zip") as error:
        Archive(pack({**small_tree, name: b"x"}))
    assert sentence in str(error.value)


@pytest.mark.parametrize(("split", "name"), [("train", "no"), ("val", "vort")])
def test_a_class_without_images_is_named(small_tree, pack, split, name):
    left = {path: data for path, data in small_tree.items() if f"{split}/{name}/" not in path}
    with pytest.raises(D4LensError, match=f"holds no image in dataset/{split}/{name}/"):
        Archive(pack({**left, f"dataset/{split}/{name}/": b""}))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../out.npy", "leads outside"),
        ("dataset/../../out.npy", "leads outside"),
        ("/etc/out.npy", "leads outside"),
        ("C:/out.npy", "leads outside"),
        ("dataset\\train\\no\\9.npy", "unusable name"),
        ("dataset/train/no/9\n.npy", "unusable name"),
        ("dataset/train/NO/1.npy", "differ only in case"),
        ("", "unusable name ''"),
    ],
)
def test_a_hostile_name_is_refused(small_tree, pack, name, sentence):
    with pytest.raises(D4LensError, match=sentence):
        SafeZip(pack({**small_tree, name: b"x"}))


def test_a_name_that_stands_twice_is_refused(small_tree, pack):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        path = pack([*small_tree.items(), ("dataset/train/no/1.npy", b"other")])
    with pytest.raises(D4LensError, match=r"'dataset/train/no/1.npy' twice"):
        SafeZip(path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(stat.S_IFLNK, "the link 'dataset/l'"), (stat.S_IFIFO, "no regular file"), (stat.S_IFCHR, "no reg")],
)
def test_links_and_devices_are_refused(tmp_path, kind, sentence):
    info = zipfile.ZipInfo("dataset/l")
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as writer:
        writer.writestr(info, "/etc/passwd")
    with pytest.raises(D4LensError, match=sentence):
        SafeZip(tmp_path / "l.zip")


def test_bombs_are_refused(pack, small_tree):
    with pytest.raises(D4LensError, match=r"'dataset/b.npy' would unpack to \d+ times .*max_ratio = 200"):
        SafeZip(pack({**small_tree, "dataset/b.npy": bytes(4 << 20)}))
    with pytest.raises(D4LensError, match=r"would unpack to .*max_ratio"):  # many small ones
        SafeZip(pack({f"{i}": bytes(1 << 19) for i in range(20)}))
    with pytest.raises(D4LensError, match="max_gigabytes = 1e-05"):
        SafeZip(pack(small_tree), Limits(max_gigabytes=1e-5))


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """The zip bomb whose directory points many entries at one stream."""
    path = tmp_path / "overlap.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("a", bytes(range(256)) * 40)
        for name in "bcd":
            info = zipfile.ZipInfo(name)
            first = writer.getinfo("a")
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.compress_size, info.file_size = first.compress_size, first.file_size
            writer.filelist.append(info)
            writer.NameToInfo[name] = info
        writer._didModify = True
    with pytest.raises(D4LensError, match="overlap"):
        SafeZip(path)


def test_a_size_that_lies_is_found_without_unpacking_more(tmp_path):
    """The directory claims 1000 bytes where the stream holds 4 MB."""
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("a", bytes(4 << 20))
        writer.getinfo("a").file_size = 1000
    with SafeZip(path) as archive, pytest.raises(D4LensError, match="'a' is damaged"):
        archive.read("a")


def test_encryption_and_rare_compression_are_refused(tmp_path):
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("a", b"secret")
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(D4LensError, match="'a' is encrypted"):
        SafeZip(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as writer:
        writer.writestr("a", b"x" * 100)
    with pytest.raises(D4LensError, match="neither by deflate nor stored"):
        SafeZip(path)


def test_a_hundred_thousand_entries_are_listed_in_little_memory(tmp_path):
    """A directory written by hand: a fault on that scale would be memory or time that grow with the square."""
    local = struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 0x21, 0, 0, 0, 28, 0)
    entry = "<4sHHHHHHIIIHHHHHII"
    n = 100_000
    with open(tmp_path / "many.zip", "wb") as file:
        names = [b"dataset/train/no/%07d.npy" % number for number in range(n)]  # 28 letters each
        for name in names:
            file.write(local + name)
        start = file.tell()
        for number, name in enumerate(names):
            offset = number * (len(local) + 28)
            file.write(
                struct.pack(entry, b"PK\x01\x02", 788, 20, 0, 0, 0, 0x21, 0, 0, 0, 28, 0, 0, 0, 0, 0, offset) + name
            )
        size = file.tell() - start
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, start))
        file.write(struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, size, start, 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with SafeZip(tmp_path / "many.zip") as archive:
        assert len(archive.members) == n
        assert archive.read(names[-1].decode()) == b""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_whatever_zipfile_says_of_damage_is_one_sentence(pack, small_tree):
    """Versions of the format to come, an extra field cut short: NotImplementedError, struct.error, IndexError of zipfile."""
    whole = pack(small_tree).read_bytes()
    entry = whole.index(b"PK\x01\x02")
    for place, value in ((entry + 6, b"\xff"), (entry + 30, b"\x04"), (entry + 42, b"\xff\xff\xff\x7f")):
        path = pack(small_tree)
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        with (
            pytest.raises(D4LensError, match=r"lenses\.zip(: 'dataset.*' is damaged| is not a readable zip| holds)"),
            Archive(path) as a,
        ):
            a.verify()


def test_damage_is_named(small_tree, pack, tmp_path):
    path = pack(small_tree)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("dataset/train/vort/2.npy")
    data[info.header_offset + 60 + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)
    with Archive(path) as archive:
        archive.read("dataset/train/vort/1.npy")
        with pytest.raises(D4LensError, match=r"lenses.zip: 'dataset/train/vort/2.npy' is damaged"):
            archive.verify()
        with pytest.raises(D4LensError, match="holds no 'x'"):
            archive.read("x")
        with pytest.raises(D4LensError, match="refused"):
            archive.read("dataset/train/no/1.npy", max_bytes=100)
    for cut in (len(data) // 2, len(data) - 10, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(D4LensError, match="not a readable zip archive, or is cut short"):
            Archive(path)
    with pytest.raises(D4LensError, match="no archive at"):
        Archive(tmp_path / "absent.zip")


def test_writer_gives_equal_bytes_for_equal_content(tmp_path, small_tree):
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as writer:
            for member, data in small_tree.items():
                writer.writestr(zip_member(member), data)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_publish_gives_one_archive_for_a_folder_and_a_zip_with_or_without_the_top(small_tree, pack, tmp_path):
    files = {**small_tree, "dataset/truth.csv": b"path\n"}
    bare = {name.removeprefix("dataset/"): data for name, data in files.items()}
    folder = unpack({**files, "dataset/train/no/._1.npy": b"fork", "dataset/.git/config": b"x"}, tmp_path / "user")
    made = []
    sources = (folder, folder / "dataset", unpack(bare, tmp_path / "bare"), pack(bare, "bare.zip"))
    for number, source in enumerate(sources):
        publish_archive(source, tmp_path / f"{number}.zip")
        made.append((tmp_path / f"{number}.zip").read_bytes())
    assert made[0] == made[1] == made[2] == made[3]
    with Archive(tmp_path / "0.zip") as archive:
        assert {entry.member: archive.read(entry.member) for entry in archive.entries} == small_tree
        assert archive.read("dataset/truth.csv") == b"path\n"
    whole = pack({**files, "__MACOSX/._x": b"kept as it is"}, "whole.zip")
    publish_archive(whole, tmp_path / "copy.zip")
    assert (tmp_path / "copy.zip").read_bytes() == whole.read_bytes()


def test_publish_leaves_nothing_behind_when_it_fails(small_tree, tmp_path, pack):
    out = tmp_path / "out"
    folder = unpack(small_tree, tmp_path / "user")
    (folder / "dataset/val/no/1.npy").unlink()
    (folder / "dataset/val/no/1.npy").symlink_to("nowhere.npy")
    with pytest.raises(D4LensError, match=r"val/no/1.npy cannot be read \(No such file"):
        publish_archive(folder, out / "lenses.zip")
    with pytest.raises(D4LensError, match="holds neither dataset/ nor train and val"):
        publish_archive(tmp_path / "user/dataset/train/no", out / "lenses.zip")
    path = pack(small_tree)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(D4LensError, match="is damaged"):
        publish_archive(path, out / "lenses.zip")
    assert not out.exists() or not list(out.iterdir())
