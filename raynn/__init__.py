"""raynn: one job file trains a network, data-parallel on Ray, to the same result on any number of workers.

The verbs are the commands': `Job.load(path)`, `train(job)`, `tune(job)`, `evaluate(run)`, `predict(run, data)`.
They load PyTorch and Ray when first used; `import raynn` alone loads neither.

The map of the house, from the ground up. A module imports only modules above it here; `ray` appears in probe,
capacity, head, cluster, data, controller, restarts, worker, hosts, trainer, trial, desk, tuner, upload and connection,
`wandb` in sweeps and dashboard.

    errors.py          the exception tree; each message: field, value, relation, remedy
    termination.py     SIGTERM does what Ctrl-C does
    head.py            a Ray of a command's own, kept by a process beside it
    settings.py        Settings: frozen, no unknown key; the only base class of a job's sections
    problems.py        what is wrong with a value, in words
    jobfile.py         a job file as text: YAML with lines and columns, and overrides
    metrics.py         what a run measures, and which way is better
    resources.py       workers, devices, memory: never changes the result
    scales.py          what a distribution is: draws from uniform numbers, and back
    distributions.py   what a search draws settings from
    expressions.py     conditions and constraints, as text that can only compute
    ledger.py          a search's trials, and the journal they are kept in
    race.py            what trials are compared by, and what a scheduler answers
    halving.py         the best share goes on: ASHA, ASHA that promotes, HyperBand
    median.py          what is worse than the median is cut
    exploration.py     settings changed while a trial trains: which may be, and by how much
    bandit.py          which settings to try next, by what others have gained
    population.py      trials that take over each other's weights
    schedulers.py      which trial goes on: all kinds in one table
    search.py          what a search may vary, how trials are compared, what ends it
    pareto.py          trials under several objectives
    knobs.py           what a knob is, and where one means nothing
    regularization.py  every knob against overfitting, in one table for all networks
    ablation.py        what a study of regularizers compares, and what it says
    costs.py           what each regularizer costs a step, as measured
    rules.py           what each stopping rule says of a curve
    stopping.py        when to stop: a decision over the history
    director.py        what a search does next: a function of its ledger
    progress.py        one line of progress, drawn from the run folder
    estimate.py        how long a search will take
    scaling.py         when another worker stops helping
    generators.py      data made up by a formula, with the best figure known
    mnist1d.py         ten shapes hidden in noise
    corpora.py         Python's standard library as text
    catalog.py         named data sets that need no download
    azure.py           Azure's storage by the keys of its own tools
    fragments.py       what one task reads of a source: each format, read as a table
    sources.py         WHERE data come from: files found and cut into fragments
    folder.py          the run folder: claimed, described, found again
    remote.py          a run folder at a URL and its copy on this machine, kept the same
    storage.py         WHERE run folders are: on this machine, mounted, or at a URL
    tracking.py        metrics.jsonl always; mirrors of it when asked, by a process beside the run
    feeds.py           what mirrors are told: the runs in a folder, as they grow
    mirrors.py         TensorBoard and MLflow
    sweeps.py          a search as a sweep in Weights & Biases, and its dashboard
    dashboard.py       a run in Weights & Biases
    columns.py         WHAT columns are: numeric, categorical, date, image, sequence
    tokens.py          text as bytes, characters, words or subwords, and back
    cleaning.py        raw rows to typed rows, and the reasons of bad ones
    times.py           WHEN steps are: time columns, calendar fields, the times to come
    splits.py          WHICH rows train, validate, test
    hashing.py         one hash of 64-bit numbers
    summaries.py       what the training rows say, mergeable
    encodings.py       cleaned columns to the numbers a network reads
    ragged.py          sequences of different lengths, one after the other
    preprocessing.py   fitted on the training split, saved as JSON with the model
    ahead.py           what will be asked for next, made by threads meanwhile
    encoded.py         encoded examples in blocks, and the pieces that a worker takes
    footprint.py       what data will take, before they are read: tables kept, or made again
    drivers.py         where preparation runs, and what is kept of its tables
    preparation.py     from sources to encoded blocks: read, clean, split, fit, encode
    cache.py           prepared tables of earlier runs, found again by what they were made of
    windows.py         windows of steps, cut lazily
    corpus.py          text to learn a language from: its tail held out, windows of tokens
    draft.py           a first job file for data that were looked at
    series.py          tables of series: sorted, split by time, cut into windows
    forecast.py        which steps are to be predicted from which, as tables
    lanes.py           which rows a global batch holds, whatever the number of workers
    pictures.py        pictures as PNG files
    charts.py          charts as options of Apache ECharts
    page.py            one HTML file that needs no network
    importance.py      which settings of a search mattered, and how sure that is
    trial_table.py     the trials of a search, read from its folder
    search_report.py   the report of a search
    study_report.py    the report of a study
    watch.py           a run or search seen in the terminal while it goes on
    collectives.py     what the workers of one run do together
    sharding.py        how workers share a network: whole each, or weights cut over them
    randomness.py      random numbers as a function of seed, epoch, row and place
    meeting.py         workers wait for the slower ones, and all raise what one of them meets
    dropout.py         units, channels, tokens and blocks silenced while training
    image_operations.py  fourteen operations on images, and the ways to choose among them
    sequence_augmentation.py  sequences and texts changed while training
    augmentation.py    what changes a batch of rows while training
    mixing.py          rows mixed in pairs, over all workers
    objectives.py      losses
    penalties.py       weights, outputs and states kept small
    perturbation.py    weights that are elsewhere while a gradient is computed
    averaging.py       averages of weights, scored and kept
    norms.py           how large each layer's weights and gradient are, once an epoch
    optimization.py    optimizer and learning rate as functions of the step
    evaluation.py      metrics of a whole split, over all workers
    networks/          WHO learns: one file per type, named in one table
    generation.py      texts continued by a language model, token by token
    ranges.py          over which range a setting is searched by default
    space.py           the settings of a search, their conditions and constraints
    searchable.py      what is wrong with a search
    bayesian.py        settings suggested by a model of the trials
    evolution.py       settings suggested by CMA-ES
    suggestions.py     what a search tries next: a function of its trials
    warm_start.py      what one search learns from an earlier one
    checkpoint.py      the state to resume from, written whole or not at all
    job.py             Job: load, override, fingerprint, schema
    tasks.py           what a job's task asks of its data and its network
    shards.py          a worker's rows as tensors: on the GPU, in memory or on disk
    batches.py         which of them a batch holds, in which order
    gradients.py       the gradient of a step: computed, clipped, made noisy
    refit.py           how long to train anew on training and validation rows together
    compiler.py        torch.compile, where a job asks for it
    allocator.py       what the C library does with memory that tensors have freed
    loop.py            THE PAGE: a generator that yields one record per epoch
    memory.py          what a worker will hold in memory, and the bound on it
    training.py        one run on one worker, whoever started it
    placement.py       which rows a worker holds, and where
    rehearsal.py       a few steps of a job's network: what they take
    probe.py           what a Ray cluster is, and what each of its nodes sees
    nodes.py           what is wrong with the nodes as they see data and storage
    capacity.py        room for a job's workers, had, waited for or impossible
    cluster.py         the Ray cluster a command works on
    data.py            the same preparation, mapped over a cluster by Ray Data
    controller.py      what runs in Ray Train's controller, and its view of the room
    restarts.py        how a group of workers starts anew: after a fault, elsewhere, larger
    worker.py          what each Ray Train worker runs
    outputs.py         what a run's network gives for encoded rows, and the columns of a prediction
    forecasts.py       what it says of series: after their end, and of windows
    documents.py       what it says of texts: how likely each is
    run.py             a run that has ended: open, evaluate, predict rows in memory
    image_quality.py   generated images against real ones, seen by a trained CNN
    prediction.py      a source predicted to a file, here or over Ray Data
    scan.py            recurrent layers as a scan over their steps
    export.py          the network for other programs
    samples.py         new texts and images from a trained generator
    judgment.py        a generator's images, judged by a CNN of the same data
    findings.py        confusion, ROC, calibration, residuals, bands
    anatomy.py         a network layer by layer, and its first filters
    inspection.py      a run looked at for its report
    gallery.py         what mirrors show of a model at its end
    sync.py            the process that mirrors a run folder, and the command that sends what is left
    exhibits.py        what a run's predictions look like
    run_report.py      the report of a run
    card.py            README.md of a run, as model hubs read it
    report.py          what a run leaves for people: report.html, and the card
    hosts.py           whether this process or a cluster works on a job, and where its tables are kept
    trainer.py         one job, trained: in this process or by Ray Train
    outcome.py         what a search leaves: a table, the best job, whether it was luck
    trial.py           what a Tune actor runs, one trial after another
    desk.py            where Ray Tune meets the director
    tuner.py           many jobs: a search, from its job file to a model
    studies.py         what each regularizer is worth: an ablation over seeds
    upload.py          what a submitted folder holds, and what makes it large
    readiness.py       whether a cluster is ready for a job, a line each
    connection.py      a cluster's dashboard: reached, let in, the cluster looked through
    submit.py          checks, then `ray job submit`, and the log to its end
    check.py           what a machine, a cluster, a job and raynn itself hold, said before training
    answers.py         what the commands say of results, in words
    cli.py             the commands
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from raynn.errors import (
    DataError,
    JobError,
    RaynnError,
    ResourceError,
    RunError,
    TrainingError,
    UserError,
)

if TYPE_CHECKING:
    from raynn.job import Job
    from raynn.prediction import predict
    from raynn.run import evaluate, open_run
    from raynn.studies import study
    from raynn.trainer import train
    from raynn.tuner import tune

    __version__: str

__all__ = [
    "DataError",
    "Job",
    "JobError",
    "RaynnError",
    "ResourceError",
    "RunError",
    "TrainingError",
    "UserError",
    "__version__",
    "evaluate",
    "open_run",
    "predict",
    "study",
    "train",
    "tune",
]

# Where the lazy names live; the imports above show the same to type checkers.
_HOMES = {
    "Job": "raynn.job",
    "evaluate": "raynn.run",
    "open_run": "raynn.run",
    "predict": "raynn.prediction",
    "study": "raynn.studies",
    "train": "raynn.trainer",
    "tune": "raynn.tuner",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("raynn")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
