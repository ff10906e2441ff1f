import numpy as np
import pytest
from astropy.io import fits
from PIL import Image

from d4lens.data.images import find, read_image
from d4lens.data.images.sources import masked, read_masks
from d4lens.errors import D4LensError


def test_images_are_found_lazily_in_files_folders_and_zips(make, tmp_path, pack):
    folder = tmp_path / "any" / "deep"
    folder.mkdir(parents=True)
    for number in (10, 2, 1):
        np.save(folder / f"{number}.npy", make.disguise(make.photons(number)))
    (folder / "notes.txt").write_text("x")
    (folder / "._1.npy").write_bytes(b"fork")
    (folder / "3.npy").write_bytes(b"broken")
    zipped = pack({"b/10.npy": make.npy(make.photons(10)), "b/9.npy": make.npy(make.photons(9)), "c.txt": b""}, "z.zip")
    sources = list(find([tmp_path / "any", zipped, str(folder / "2.npy")]))
    names = [source.name for source in sources]
    assert names == [
        *(str(folder / f"{number}.npy") for number in (1, 2, 3, 10)),
        f"{zipped}: b/9.npy",
        f"{zipped}: b/10.npy",
    ]
    assert np.array_equal(sources[5].load(), make.photons(10))
    assert np.array_equal(sources[1].load(), make.disguise(make.photons(2))[0])
    with pytest.raises(D4LensError, match=r"3\.npy is not an .npy array"):
        sources[2].load()


def test_patterns_reach_what_their_shell_would_and_folders_below(make, tmp_path):
    for name in ("a/1.npy", "a/b/2.npy", "3.npy", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, make.photons(0)) if name.endswith("npy") else (tmp_path / name).write_text("x")
    for pattern, names in (
        ("*", {"3.npy", "1.npy", "2.npy"}),
        ("*.npy", {"3.npy"}),
        ("**/*.npy", {"1.npy", "2.npy", "3.npy"}),
        ("a/?.npy", {"1.npy"}),
    ):
        assert {source.name.rpartition("/")[2] for source in find([tmp_path / pattern])} == names
    with pytest.raises(D4LensError, match=r"\*\.fits holds no image"):
        list(find([str(tmp_path / "*.fits")]))


def test_an_image_named_twice_comes_once(make, tmp_path, pack, monkeypatch):
    np.save(tmp_path / "1.npy", make.photons(0))
    zipped = pack({"1.npy": make.npy(make.photons(0))})
    (tmp_path / "link.npy").symlink_to(tmp_path / "1.npy")
    monkeypatch.chdir(tmp_path)
    found = [source.name for source in find(["1.npy", "./1.npy", tmp_path, "*.npy", zipped, zipped, "link.npy"])]
    assert found == ["1.npy", f"{zipped}: 1.npy"]


def test_a_zip_in_a_zip_and_a_bomb_are_refused(make, pack, tmp_path):
    inner = pack({"1.npy": make.npy(make.photons(0))}, "inner.zip").read_bytes()
    with pytest.raises(D4LensError, match=r"outer\.zip holds the zip 'in/inner\.zip', and zips in zips are not opened"):
        list(find([pack({"a.npy": make.npy(make.photons(0)), "in/inner.zip": inner}, "outer.zip")]))
    with pytest.raises(D4LensError, match=r"bomb\.zip.*zip bomb is refused"):
        list(find([pack({"a.npy": make.npy(np.zeros((2000, 2000)))}, "bomb.zip")]))


def test_what_holds_no_image_is_named(make, tmp_path, pack):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    for path, sentence in (
        (tmp_path / "absent", "no file or folder"),
        (tmp_path / "empty", "empty holds no image"),
        (tmp_path / "a.jpg", "of no readable format"),
        (pack({"a.txt": b""}, "no.zip"), "no.zip holds no image"),
        (pack({"../a.npy": b""}, "evil.zip"), "leads outside"),
    ):
        with pytest.raises(D4LensError, match=sentence):
            list(find([path]))
    with pytest.raises(D4LensError, match="cannot be read: no such file"):
        read_image(tmp_path / "absent.npy")
    with pytest.raises(D4LensError, match="of no readable format"):
        read_image(tmp_path / "a.jpg")
    with open(tmp_path / "huge.npy", "wb") as file:
        file.truncate(1 << 27)
    with pytest.raises(D4LensError, match="larger than 67 MB"):
        read_image(tmp_path / "huge.npy")


def test_masks_come_from_files_and_arrays(make, tmp_path):
    gone = np.zeros((48, 48), bool)
    gone[3:5, 7] = True
    np.save(tmp_path / "true.npy", gone)
    np.save(tmp_path / "number.npy", gone * 2.0)
    fits.writeto(tmp_path / "mask.fits", gone.astype(np.int16))
    Image.fromarray(gone.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([gone.astype(np.uint8)] * 3) * 255).save(tmp_path / "grey.png")
    np.savez(tmp_path / "both.npz", image=np.ones((48, 48)), mask=gone)
    science, quality = (fits.ImageHDU(of.astype(np.int16), name=name) for name, of in (("SCI", gone + 1), ("DQ", gone)))
    fits.HDUList([fits.PrimaryHDU(), science, quality]).writeto(tmp_path / "both.fits")
    names = ("true.npy", "number.npy", "mask.fits", "mask.png", "grey.png", "both.npz", "both.fits")
    files = [tmp_path / name for name in names]
    for given in (*files, f"{files[-1]}:DQ", gone, gone.astype(int).tolist(), gone[None]):
        (mask,) = read_masks(given)
        assert np.array_equal(mask, gone)
    assert len(read_masks(files)) == len(files)
    np.save(tmp_path / "image.npy", make.photons(0, n=48))
    (image,) = find([tmp_path / "image.npy"])
    (behind,) = masked([image], read_masks(gone))
    assert np.array_equal(np.isnan(behind.read(None).pixels), gone)
    np.save(tmp_path / "cube.npy", np.ones((2, 3, 4)))
    for given in (tmp_path / "cube.npy", tmp_path / "none.npy", 3, "none", [[1, 2], [3]], [None]):
        with pytest.raises(D4LensError):
            read_masks(given)
    np.savez(tmp_path / "strange.npz", image=np.ones((48, 48)), mask=gone.astype(complex))
    with pytest.raises(D4LensError, match=r"strange\.npz: 'mask' holds values of type complex128"):  # not the image's
        read_masks(tmp_path / "strange.npz")
    with pytest.raises(D4LensError, match=r"the mask .*none\.npy is no file; check the path"):
        read_masks(tmp_path / "none.npy")
