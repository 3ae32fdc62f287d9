"""The commands. Results go to standard output, everything else to standard error.

Exit status: 0 done; 2 the user can mend it; 1 failed at run time; 130 interrupted.
"""

from __future__ import annotations

import time

STARTED_AT = time.time()

import argparse  # noqa: E402 - the clock starts before the imports do
import atexit  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import shlex  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from importlib import import_module  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any, NoReturn  # noqa: E402

from raynn.answers import (  # noqa: E402
    first_step,
    luck_lines,
    metrics_line,
    refitted_lines,
    trials_line,
    with_interval,
)
from raynn.errors import Detached, RaynnError, UserError  # noqa: E402
from raynn.scaling import DEFAULT_LINK, LINKS  # noqa: E402
from raynn.termination import heed_termination  # noqa: E402

if TYPE_CHECKING:
    from raynn.job import Job

Answer = dict[str, Any]
Command = Callable[[argparse.Namespace], tuple[Answer, str]]


class UsageError(UserError):
    """Arguments that no command takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    heed_termination()
    atexit.register(gc.freeze)  # else Python looks through all that PyTorch has made before it ends: .5 to .8 s
    try:
        options = _parsed(arguments)
        command: Command = options.command
        if "://" in getattr(options, "run", "") and command is not watch:
            command = partial(_at_url, command)
        answer, text = command(options)
    except RaynnError as error:
        name = "" if isinstance(error, UsageError) else f"raynn {options.name}: "
        _say(f"{name}{error}")
        if as_json:
            _answer(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return 2 if isinstance(error, UserError) else 1
    except Detached as detached:
        _say(str(detached))
        if as_json:
            _answer(json.dumps({"error": str(detached), "kind": "Detached"}))
        return 130
    except KeyboardInterrupt as interruption:
        resume = str(interruption) or None
        _say("interrupted" + (f"; what was trained is saved, continue with:\n  {resume}" if resume else ""))
        if as_json:
            _answer(json.dumps({"error": "interrupted", "kind": "KeyboardInterrupt", "resume": resume}))
        return 130
    _answer(json.dumps(answer) if as_json else text)
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; overrides `dotted.key=value` may stand before or after them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if hasattr(options, "overrides") and all("=" in text and not text.startswith("-") for text in rest):
        options.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _answer(text: str) -> None:
    sys.stdout.write(text + "\n")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _ran(options: argparse.Namespace, module: str) -> tuple[Job, Path, Answer]:
    """The job file, run by the command's verb in that module: the job, its folder, its result.json. Interrupted, it
    says how to go on.
    """
    from raynn.cluster import begun

    with begun(options.job, options.overrides, options.name):
        from raynn.folder import read_result
        from raynn.job import Job

        verb: Callable[..., Path] = getattr(import_module(module), options.name)
        job = Job.load(options.job, options.overrides)
        try:
            folder = verb(job, Path(options.job).parent, quiet=options.quiet, started_at=STARTED_AT)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_resume_command(options, job)) from None
    return job, folder, read_result(folder)


def _resume_command(options: argparse.Namespace, job: Job) -> str:
    """The command that continues an interrupted training; empty where its run folder was not yet made."""
    from raynn.storage import newest, open_storage

    try:
        run = newest(open_storage(job.storage), job.name)
    except UserError:
        return ""
    if (run / "result.json").exists():  # an earlier run, which has ended
        return ""
    overrides = [o for o in options.overrides if not o.startswith("resume=")]
    return shlex.join(["raynn", options.name, options.job, *overrides, "resume=true"])


def train(options: argparse.Namespace) -> tuple[Answer, str]:
    """One run."""
    job, folder, result = _ran(options, "raynn.trainer")
    from raynn.folder import finite
    from raynn.storage import address_of

    shown = _shown_path(folder)
    said, upload = _mirrored(folder, job)
    lines = [
        f"{result['status']} after {result['epochs']} epochs: {result['stop_reason']}",
        f"best epoch {result['best_epoch']}: {metrics_line(result['metrics'])}",
        *refitted_lines(result),
        f"{result['parameters']:,} parameters, {result['workers']} worker{'s' if result['workers'] > 1 else ''}, "
        f"{result['examples_per_second']:,.0f} examples/s, {first_step(result)}"
        f"{result['seconds']:.1f} s in all",
        *said,
        f"{shown}; next: raynn predict {shown} DATA --out predictions.parquet{upload}",
    ]
    return finite(result | {"run": address_of(folder)} | _wandb(folder)), "\n".join(lines)


def tune(options: argparse.Namespace) -> tuple[Answer, str]:
    """The search in the job's `search` section."""
    job, folder, result = _ran(options, "raynn.tuner")
    from raynn.folder import finite
    from raynn.job import differences
    from raynn.storage import address_of

    shown, best = _shown_path(folder), result["best"]
    said, upload = _mirrored(folder, job)
    found = [line for line in differences(job, job.with_settings(best["settings"])) if not line.startswith("search")]
    lines = [
        f"{sum(result['trials'].values())} trials: {trials_line(result)}; {result['stop_reason']}",
        f"best is trial {best['number']}: {', '.join(found) or 'the job as it is'}",
        metrics_line(best["metrics"]),
        *luck_lines(result),
        f"{result['seconds']:.0f} s in all, {result['device_hours']:.2g} device-hours",
        *said,
        f"{shown}; next: raynn train {_relative(folder / 'job.best.yaml')}{upload}",
    ]
    return finite(result | {"run": address_of(folder)} | _wandb(folder)), "\n".join(lines)


def _mirrored(folder: Path, job: Job) -> tuple[list[str], str]:
    """Lines on where the run is seen, and for the last line how to upload what W&B does not have."""
    from raynn.tracking import told

    lines, left = told(folder, job.tracking)
    return lines, f"; to upload: {shlex.join(['raynn', 'sync', _shown_path(folder)])}" if left else ""


def _wandb(folder: Path) -> Answer:
    """What W&B has of a run, for --json; nothing where the run is not mirrored there."""
    from raynn.tracking import read_state

    state = read_state(folder)
    return {"wandb": state} if state else {}


def sync(options: argparse.Namespace) -> tuple[Answer, str]:
    """A run, or a search as a sweep with its trials and its dashboard, to W&B."""
    from raynn.sync import follow
    from raynn.sync import sync as sync_run

    if options.follow:
        follow(
            Path(options.run),
            online=options.online,
            project=options.project,
            entity=options.entity,
            wait_s=options.wait,
        )
    state = sync_run(options.run, project=options.project, entity=options.entity, wait_s=options.wait)
    lines = [f"W&B: {state[key]}" for key in ("url", "view", "view_problem") if state.get(key)]
    sent = f"{state.get('sent', 0)} of {state.get('runs', 0)} runs are in W&B whole"
    return {"run": options.run} | state, "\n".join([*lines, f"{options.run}; {sent}"])


def study(options: argparse.Namespace) -> tuple[Answer, str]:
    """What each regularizer is worth: an ablation over seeds."""
    job, folder, result = _ran(options, "raynn.studies")
    from raynn.folder import finite
    from raynn.storage import address_of
    from raynn.studies import table_of

    said, upload = _mirrored(folder, job)
    arms, shown = table_of(folder), _shown_path(folder)
    width = max(len(arm["arm"]) for arm in arms)
    lines = [
        f"{result['metric']} over {result['seeds']} seeds, 95 % intervals of paired differences; {trials_line(result)}"
    ]
    for arm in arms:
        parts = [f"{arm['arm']:<{width}}  {with_interval(arm['test'])}"]
        parts += [f"{key.replace('_', ' ')} {with_interval(arm[key])}" for key in ("gain", "gap") if arm[key]]
        lines.append("  ".join(parts))
    lines += [*said, f"{shown}; next: open {_relative(folder / 'report.html')}{upload}"]
    return finite(result | {"run": address_of(folder), "arms": arms} | _wandb(folder)), "\n".join(lines)


def evaluate(options: argparse.Namespace) -> tuple[Answer, str]:
    """Metrics on the job's test set, or on DATA."""
    from raynn.folder import finite
    from raynn.run import evaluate as evaluate_run

    metrics = evaluate_run(options.run, options.data)
    if options.judge is not None:
        from raynn.judgment import judge

        metrics |= judge(options.run, options.judge)
    return finite({"run": options.run, "metrics": metrics}), metrics_line(metrics)


def predict(options: argparse.Namespace) -> tuple[Answer, str]:
    """DATA's rows in their order, plus prediction columns."""
    from raynn.prediction import predict as predict_source

    answer = predict_source(options.run, options.data, options.out, workers=options.workers, quiet=options.quiet)
    text = f"{answer['rows']:,} predictions in {answer['out']}"
    if answer["bad_rows"]:
        text += f"; {answer['bad_rows']} rows could not be read: {answer['out']}.bad_rows.jsonl says why"
    return answer, text


def generate(options: argparse.Namespace) -> tuple[Answer, str]:
    """New texts or images from a trained generator."""
    from raynn.samples import IMAGE_OPTIONS, TEXT_OPTIONS
    from raynn.samples import generate as generate_from

    given = {name: getattr(options, name) for name in TEXT_OPTIONS + IMAGE_OPTIONS}
    answer = generate_from(options.run, options.count, seed=options.seed, out=options.out, **given)
    if "grid" in answer:
        return answer, f"{len(answer['images'])} images, all in {answer['grid']}"
    return answer, f"{len(answer['texts'])} texts in {answer['out']}" if "out" in answer else "\n\n".join(
        answer["texts"]
    )


def export(options: argparse.Namespace) -> tuple[Answer, str]:
    """The network for other programs, checked against the run."""
    from raynn.export import export as export_run

    answer = export_run(options.run, options.format, options.out)
    text = f"{answer['out']}: outputs agree with the run's to {answer['difference']:.1g}"
    return answer, text


def init(options: argparse.Namespace) -> tuple[Answer, str]:
    """A job file for data that raynn has looked at."""
    from raynn.draft import draft_job
    from raynn.errors import JobError

    out = Path(options.out) if options.out else None
    draft = draft_job(options.data, options.target, out.stem if out else None)
    out = out or Path(f"{draft.name}.yaml")
    if out.exists():
        raise JobError(f"{out} exists already, and is not written over; name another with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(draft.text)
    train_it = shlex.join(["raynn", "train", str(out)])
    text = f"{draft.text}\n{out}: {draft.task} with network.kind {draft.kind}; next: {train_it}"
    return {"job": str(out), "task": draft.task, "network": draft.kind, "next": train_it}, text


def submit(options: argparse.Namespace) -> tuple[Answer, str]:
    """Checks the cluster and the job, then `ray job submit`; its log is followed to its end."""
    from raynn.submit import Submission, read_environment, send

    asked = Submission(
        Path(options.job),
        tuple(options.overrides),
        options.address,
        "tune" if options.tune else "train",
        Path(options.working_dir),
        read_environment(options.runtime_env, options.pip or (), options.uv or ()),
        options.pass_wandb_key,
        options.quiet,
    )
    say: Callable[[str], None] = (lambda text: None) if options.quiet else _say
    log = sys.stderr if options.json else sys.stdout
    return send(asked, say, log, wait=not options.no_wait, stop_on_interrupt=options.stop_on_interrupt)


def check(options: argparse.Namespace) -> tuple[Answer, str]:
    """The machine, the cluster, the job: what would fail, and the remedy."""
    from raynn.check import check as check_all

    answer, lines = check_all(options.address, options.job, options.overrides, options.link)
    return answer, "\n".join(lines)


def report(options: argparse.Namespace) -> tuple[Answer, str]:
    """RUN/report.html: one file that any browser shows, offline."""
    from raynn.report import write_report

    path = write_report(options.run)
    return {"run": options.run, "report": str(path)}, f"{path}: open it in a browser"


def watch(options: argparse.Namespace) -> tuple[Answer, str]:
    """A run or search as it goes on, until it has ended."""
    import os

    from raynn.watch import watch as watch_run

    with open(os.devnull, "w") as nowhere:
        stream = nowhere if options.quiet else sys.stderr if options.json else sys.stdout
        view = watch_run(options.run, stream, every_s=options.every)
    return view.result, shlex.join(["next:", "raynn", "report", options.run])


def schema(options: argparse.Namespace) -> tuple[Answer, str]:
    """JSON Schema of a job file."""
    from raynn.job import Job

    content = Job.schema()
    return content, json.dumps(content, indent=2)


def list_all(options: argparse.Namespace) -> tuple[Answer, str]:
    """Networks, regularizers, stopping rules, catalogue data sets."""
    from raynn.check import catalogue

    if options.cost:
        from raynn.costs import lines_of, measurements

        found = measurements()
        return {"cost": found}, "\n\n".join("\n".join(lines_of(each)) for each in found)
    answer = catalogue()
    blocks = []
    for title, entries in answer.items():
        width = max(len(name) for name in entries)
        blocks.append("\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in entries.items())]))
    return answer, "\n\n".join(blocks)


def _shown_path(folder: Path) -> str:
    """A URL where it is kept at one; else relative where it lies below the current folder."""
    from raynn.storage import address_of

    return _relative(folder) if folder.is_relative_to(Path.cwd()) else address_of(folder)


def _relative(path: Path) -> str:
    """As a path, relative where it lies below the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _at_url(command: Command, options: argparse.Namespace) -> tuple[Answer, str]:
    """A command on a run at a URL: works on its copy, sends what it writes there, and speaks of the URL."""
    from raynn.storage import brought, named

    with brought(options.run) as folder:
        options.run = str(folder)
        try:
            answer, text = command(options)
        except RaynnError as error:
            raise type(error)(named(str(error))) from None
    return json.loads(named(json.dumps(answer))), named(text)


def _count(text: str) -> int:
    """The number of something of which there is at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Raises what it would print, so that every failure leaves by the same door."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}\n{self.format_usage().rstrip()}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="raynn",
        description="Distributed training of neural networks on Ray, with the regularization and early stopping that "
        "make them generalize.",
    )
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    def add(name: str, command: Command) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.add_argument("--quiet", action="store_true", help="no progress")
        sub.set_defaults(command=command)
        return sub

    sub = add("train", train)
    sub.add_argument("job", metavar="JOB.yaml")
    sub.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    sub = add("tune", tune)
    sub.add_argument("job", metavar="JOB.yaml")
    sub.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    sub = add("study", study)
    sub.add_argument("job", metavar="JOB.yaml")
    sub.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    sub = add("evaluate", evaluate)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("data", nargs="?", metavar="DATA", help="a source; default: the job's test set")
    sub.add_argument("--judge", metavar="CNN_RUN", help="of images: a CNN of the same data says how good they are")
    sub = add("predict", predict)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("data", metavar="DATA", help="a source; or test, validation, train: those rows of the job's data")
    sub.add_argument("--out", required=True, metavar="FILE.parquet")
    sub.add_argument("--workers", type=_count, default=1, help="more than one predict through Ray Data")
    sub = add("generate", generate)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--count", type=_count, help="how many; default: 1 text, 64 images")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--out", metavar="PATH", help="texts: a file; images: a folder; default: images in the run folder")
    sub.add_argument("--prompt", metavar="TEXT", help="what a text begins with")
    sub.add_argument("--max-tokens", type=_count, help="of a text, after its prompt; default: 500")
    sub.add_argument("--temperature", type=float, help="below 1 likelier tokens come oftener; 0: always the likeliest")
    sub.add_argument("--top-k", type=int, help="only the k likeliest tokens")
    sub.add_argument("--top-p", type=float, help="only the likeliest that together have this probability")
    sub.add_argument("--stop", action="append", metavar="TEXT", help="ends a text, and is left out; may be repeated")
    sub.add_argument("--class", dest="classes", action="append", metavar="LABEL", help="of the images; may be repeated")
    sub.add_argument("--steps", type=_count, help="of the images' sampler")
    sub.add_argument("--guidance", type=float, help="how strongly a class is asked for")
    sub = add("sync", sync)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--project", metavar="NAME", help="default: the job's")
    sub.add_argument("--entity", metavar="NAME", help="user or team; default: the job's, or the key's own")
    sub.add_argument(
        "--wait", type=float, default=60.0, metavar="SECONDS", help="while nothing arrives there; default: 60"
    )
    # how a command starts the process beside it
    sub.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    sub.add_argument("--online", action="store_true", help=argparse.SUPPRESS)
    sub = add("report", report)
    sub.add_argument("run", metavar="RUN")
    sub = add("watch", watch)
    sub.add_argument("run", metavar="RUN", help="a run folder, or its URL")
    sub.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks; default: 1")
    sub = add("export", export)
    sub.add_argument("run", metavar="RUN")
    sub.add_argument("--format", required=True, choices=("onnx", "torch_export"))
    sub.add_argument("--out", metavar="PATH", help="default: model.onnx or model.pt2 in the run's model folder")
    sub = add("init", init)
    sub.add_argument("data", metavar="DATA", help="a source: file, folder, glob, URL or catalogue name")
    sub.add_argument("--target", metavar="COLUMN", help="the column to predict; text and images need none")
    sub.add_argument("--out", metavar="JOB.yaml", help="default: the name of the data")
    sub = add("submit", submit)
    sub.add_argument("job", metavar="JOB.yaml")
    sub.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    sub.add_argument("--address", required=True, metavar="URL", help="of the cluster's dashboard")
    sub.add_argument("--tune", action="store_true", help="the job's search, instead of one run")
    sub.add_argument("--working-dir", default=".", metavar="FOLDER", help="what is uploaded; default: this folder")
    sub.add_argument("--runtime-env", metavar="FILE", help="Ray's runtime environment, as YAML or JSON")
    for tool in ("pip", "uv"):
        sub.add_argument(
            f"--{tool}", action="append", metavar="PACKAGE", help=f"{tool} installs it, or what a .txt file lists"
        )
    sub.add_argument("--pass-wandb-key", action="store_true", help="WANDB_API_KEY of this shell goes with the job")
    sub.add_argument("--no-wait", action="store_true", help="do not follow the log")
    sub.add_argument("--stop-on-interrupt", action="store_true", help="Ctrl-C stops the job")
    sub = add("check", check)
    sub.add_argument("job", nargs="?", metavar="JOB.yaml")
    sub.add_argument("--address", metavar="URL", help="of a cluster's dashboard; default: RAY_ADDRESS")
    links = ", ".join(LINKS)
    sub.add_argument("--link", default=DEFAULT_LINK, help=f"what joins workers, for the estimate: {links}, or 25 GbE")
    sub.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    add("schema", schema)
    sub = add("list", list_all)
    sub.add_argument("--cost", action="store_true", help="what each regularizer costs a step, as measured")
    return parser
