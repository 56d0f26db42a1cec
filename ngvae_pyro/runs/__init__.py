"""Run folders: training into them, reading, evaluating and comparing them."""

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
