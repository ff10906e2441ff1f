"""A data set simulated by several processes: each draws a shard, the first one joins them into one process's bytes."""

from pathlib import Path

from d4lens.parallel import Ranks
from d4lens.simulator.dataset import join_shards, write_archive, write_shard
from d4lens.simulator.priors import Preset


def write_shared(
    ranks: Ranks,
    path: str | Path,
    preset: Preset,
    seed: int,
    n_train: int,
    n_val: int,
    workers: int = 1,
    train_preset: Preset | None = None,
) -> None:
    """`write_archive` by all of `ranks` at once, each with `workers` processes; shows its progress."""
    path = Path(path)
    if ranks.world == 1:
        write_archive(path, preset, seed, n_train, n_val, workers, progress=True, train_preset=train_preset)
        return
    place = ranks.part(path), preset, seed, n_train, n_val, ranks.rank, ranks.world, workers
    write_shard(*place, progress=ranks.leads, train_preset=train_preset)
    ranks.wait()
    if ranks.leads:
        join_shards(ranks.parts(path), path)
        for part in ranks.parts(path):
            part.unlink()
    ranks.wait()
