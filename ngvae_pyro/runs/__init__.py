"""Run folders: training into them, reading, evaluating and comparing them."""

from typing import TYPE_CHECKING

from ngvae_pyro._doors import lazily

if TYPE_CHECKING:
    from ngvae_pyro.data.declared import data_seed, load_data, load_images, located, paths, rendered
    from ngvae_pyro.runs.folder import (
        ADDED,
        CHECKPOINTS,
        METRICS,
        RECORD,
        RESULTS,
        UNITS,
        check_own,
        claim,
        contents,
        finished,
        load_metrics,
        load_record,
        load_spec,
        own_files,
        read_json,
        unfinished,
        write_json,
    )
    from ngvae_pyro.runs.reading import (
        check_recorded,
        load_pair,
        load_posterior,
        load_run,
        run_images,
    )
    from ngvae_pyro.runs.saving import save_config, save_record, save_run, save_weights, saved_run
    from ngvae_pyro.runs.start import Stage, resume, train

__getattr__ = lazily(
    __name__,
    {
        "ADDED": "runs.folder",
        "CHECKPOINTS": "runs.folder",
        "METRICS": "runs.folder",
        "RECORD": "runs.folder",
        "RESULTS": "runs.folder",
        "Stage": "runs.start",
        "UNITS": "runs.folder",
        "check_own": "runs.folder",
        "check_recorded": "runs.reading",
        "claim": "runs.folder",
        "contents": "runs.folder",
        "data_seed": "data.declared",
        "finished": "runs.folder",
        "load_data": "data.declared",
        "load_images": "data.declared",
        "load_metrics": "runs.folder",
        "load_pair": "runs.reading",
        "load_posterior": "runs.reading",
        "load_record": "runs.folder",
        "load_run": "runs.reading",
        "load_spec": "runs.folder",
        "located": "data.declared",
        "own_files": "runs.folder",
        "paths": "data.declared",
        "read_json": "runs.folder",
        "rendered": "data.declared",
        "resume": "runs.start",
        "run_images": "runs.reading",
        "save_config": "runs.saving",
        "save_record": "runs.saving",
        "save_run": "runs.saving",
        "save_weights": "runs.saving",
        "saved_run": "runs.saving",
        "train": "runs.start",
        "unfinished": "runs.folder",
        "write_json": "runs.folder",
    },
)
