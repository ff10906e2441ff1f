"""The images as one archive: simulated with their truth, fetched from the Drive, or a zip or folder at hand."""

import os
from pathlib import Path

from common import arguments, one_sentence, parameters

from d4lens.data.archive import Limits
from d4lens.data.download import Expected, Patience, from_drive, from_path
from d4lens.files import sha256
from d4lens.parallel import ranks
from d4lens.params import DownloadParams
from d4lens.simulator import preset
from d4lens.simulator.dataset import DataSet, write_shared


@one_sentence
def main() -> None:
    profile, processes = arguments(__doc__).profile, ranks()
    params = parameters("download", DownloadParams, profile)
    archive = Path("data") / profile / "lenses.zip"
    limits = Limits(**params.limits.model_dump())
    if params.source != "simulate" and not processes.is_main:
        return
    if params.source == "gdrive":
        drive = params.gdrive
        expected = Expected(drive.sha256, drive.images_per_class.model_dump(), limits)
        patience = Patience(drive.retries, drive.timeout_seconds, drive.backoff_seconds)
        found = from_drive(drive.id, archive, params.cache, expected, patience)
        if drive.sha256 is None:
            print(f"tree, counts and CRCs are right; pin the file in params.yaml: download.gdrive.sha256: {found}")
    elif params.source == "path":
        from_path(params.path, archive, limits)
    else:
        name, priors = params.simulate.preset, params.simulate.priors
        train = tuple(preset(one, priors) for one in params.simulate.train_presets)
        data = DataSet(preset(name, priors), params.simulate.seed, params.n_train, params.n_val, train)
        workers = params.workers or max(1, (os.cpu_count() or 1) // processes.local_world)
        write_shared(processes, archive, data, workers)
    if processes.is_main:
        print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, SHA-256 {sha256(archive)}")


if __name__ == "__main__":
    main()
