"""Decide which outputs are up to date from the contents of files, never from their times."""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from udpm.core.errors import UserError
from udpm.core.files import write_text
from udpm.core.provenance import Digests, append
from udpm.core.reading import read_json
from udpm.runs.config_guard import EARLIER_MUTABLE_KEYS, MUTABLE_KEYS
from udpm.runs.layout import Layout, milestone

ANYWHERE = Layout("results:")
"""Paths as the records name them, so that the folder of results may be moved or copied."""
PACKAGES = sysconfig.get_path("purelib")
RECORDS = tuple(f"{folder}/" for folder in (ANYWHERE.configs, ANYWHERE.runs, ANYWHERE.datasets))
"""Folders of JSON files of which only some keys count."""
NOT_COUNTED = ("usage", "figure", "extra", "arguments")
"""Params that do not change a result, or follow from the files and wildcards of their job."""
TRAINING = "train_model"
"""This rule runs again only for outputs in `Content.forced`: training itself resumes from its checkpoints."""
KEPT = (TRAINING, "import_weights", "prepare_dataset", "cache_levels", "export_images", "write_card")
"""Rules whose outputs Snakemake must not delete, neither before a job reruns nor after it fails: they may have taken
days, be the only copy, or contain a user's edits. Their commands replace outputs atomically, or refuse to."""
FETCH = "fetch_extractor_"
"""Start of the names of rules for downloaded weights, which are kept, too. Scoring checks their digests."""


def is_kept(rule: str) -> bool:
    """Return whether Snakemake must not delete a rule's outputs."""
    return rule in KEPT or rule.startswith(FETCH)


class Content:
    """A record of what each job's outputs were made from: digests of its inputs, and its parameters.

    An output without an entry counts as current, and gets an entry.

    Args:
        results: folder of all results.
        resolved: returns whether a file holds the current resolved configuration; None for all other files.

    Attributes:
        digests: of files.
        forced: outputs that must be made again.
    """

    def __init__(self, results: str, resolved: Callable[[str], bool | None] = lambda path: None) -> None:
        folder = Path(Layout(results).content)
        self._path, self.digests = folder / "made_from.jsonl", Digests(folder / "digests.jsonl")
        self._resolved = resolved
        self.forced: set[str] = set()
        self._made, self._lines = _read(self._path)
        self._prefix = re.compile(rf"(?<![\w./-]){re.escape(results)}(?=/)")

    def stale(self, jobs: Iterable[Any], remember: bool) -> set[str]:
        """Return the first outputs of jobs that must run again although all their outputs exist.

        Takes all jobs that the targets depend on. With `remember`, it writes entries for outputs that have none.
        """
        found: set[str] = set()
        new: dict[str, Any] = {}
        for job in jobs:
            if not job.output:
                continue
            forced = any(str(output) in self.forced for output in job.output)
            if forced or (job.rule.name != TRAINING and not self._is_current(job, new)):
                found.add(str(job.output[0]))
        if remember:
            self._write(new)
            self.digests.save()
        return found

    def note(self, job: Any) -> None:
        """Write the entry of a job that succeeded."""
        if job.output:
            self._write({self._key(job): self._made_from(job)})
            self.digests.save()

    def _is_current(self, job: Any, new: dict[str, Any]) -> bool:
        configuration = self._resolved(str(job.output[0])) if len(job.output) == 1 else None
        if configuration is not None:
            return configuration
        key = self._key(job)
        recorded = self._made.get(key)
        if recorded is None:
            if not all(Path(output).exists() for output in job.output):
                return True
            if self._names_others(job):
                return False
            new[key] = self._made_from(job)
            return True
        now = self._made_from(job)
        # A missing input is no reason to run again: it is made if a job that runs needs it.
        missing = {name for name, identity in now["from"].items() if identity is None}
        before, after = (
            {name: identity for name, identity in entry["from"].items() if name not in missing}
            for entry in (recorded, now)
        )
        return recorded["with"] == now["with"] and before == after

    def _names_others(self, job: Any) -> bool:
        """Return whether an output's record names other weights, images, reference or extractor than the job has."""
        record = _read_record(next((str(output) for output in job.output if str(output).endswith(".json")), ""))
        subject, protocol = _part(record, "subject"), _part(record, "protocol")
        for path in map(str, job.input):
            recorded: Any = None
            if path.endswith(".safetensors"):
                recorded = record.get("weights_sha256")
                path = self._weights(path, record.get("iteration"), recorded)
            elif path.endswith(".pt"):
                recorded = _part(protocol, "extractor").get("sha256")
            elif self._name(path).startswith(f"{ANYWHERE.references}/"):
                recorded = _part(protocol, "reference").get("sha256")
            elif self._name(path).startswith(f"{ANYWHERE.sample_sets}/") and path.endswith(".npz"):
                recorded = subject.get("samples_sha256")
            if recorded is not None and Path(path).is_file() and self.digests(path) != recorded:
                return True
        return False

    def _weights(self, path: str, iteration: Any, digest: Any) -> str:
        """Return a run's weights, or its milestone of an iteration if that has the digest."""
        if not isinstance(iteration, int):
            return path
        kept = milestone(Path(path).parent, iteration)
        return str(kept) if kept.is_file() and self.digests(kept) == digest else path

    def _made_from(self, job: Any) -> dict[str, Any]:
        inputs = sorted({str(path) for path in job.input})
        params = [
            [name, self._name(str(value))]
            for name, value in job.params.items()
            if name not in NOT_COUNTED and value is not None
        ]
        return {
            "from": {self._name(path): self.identity(path) for path in inputs},
            "with": hashlib.sha256(json.dumps(params).encode()).hexdigest()[:16],
        }

    def _key(self, job: Any) -> str:
        return self._name(str(job.output[0]))

    def _name(self, text: str) -> str:
        """Replace the folders of results and of installed packages in a text by the names they have in the records."""
        return self._prefix.sub("results:", text).replace(PACKAGES, "packages:")

    def identity(self, path: str) -> str | None:
        """Return the digest of what matters in a file; None if the file does not exist."""
        if not Path(path).is_file():
            return None
        try:
            name = self._name(path)
            if name.startswith(RECORDS) and name.endswith(".json"):
                essence = _essence(read_json(path, "record"), Path(path).name)
                return hashlib.sha256(json.dumps(essence, sort_keys=True).encode()).hexdigest()
            return self.digests(path)
        except UserError:
            # The job that reads it reports why.
            return "cannot be read"

    def _write(self, new: dict[str, Any]) -> None:
        self._made |= new
        # A study may go without its entries.
        with suppress(OSError, UserError):
            if new:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                append(self._path, _as_lines(new))
                self._lines += len(new)
            if self._lines > 4 * len(self._made) + 100:
                write_text(self._path, _as_lines(self._made))
                self._lines = len(self._made)


def _as_lines(made: dict[str, Any]) -> str:
    return "".join(json.dumps({"made": key, **entry}) + "\n" for key, entry in made.items())


def _read_record(path: str) -> dict[str, Any]:
    try:
        return read_json(path, "record") if path else {}
    except UserError:
        return {}


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _essence(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the part of a record that other results depend on."""
    if name == "dataset.json":
        return {key: record.get(key) for key in ("sha256", "splits", "classes", "class_names")}
    if name == "complete.json":
        return {key: record.get(key) for key in ("weights_sha256", "iterations", "origin")}
    return without_mutable_keys(record)


def without_mutable_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration of a run or data set without the keys that no result depends on."""
    if "dataset_name" not in values:
        own = {key.partition(".")[2] for key in MUTABLE_KEYS if key.startswith("dataset.")}
        return {key: value for key, value in values.items() if key not in own} if "source" in values else values
    free = MUTABLE_KEYS | EARLIER_MUTABLE_KEYS
    return {
        section: {key: value for key, value in keys.items() if f"{section}.{key}" not in free}
        if isinstance(keys, dict)
        else keys
        for section, keys in values.items()
    }


def _read(path: Path) -> tuple[dict[str, Any], int]:
    made: dict[str, Any] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}, 0
    for line in lines:
        # Torn by a kill, or damaged.
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(line)
            if isinstance(found["from"], dict) and isinstance(found["with"], str):
                made[str(found["made"])] = {"from": found["from"], "with": found["with"]}
    return made, len(lines)


def install(content: Content | None, workflow: Any) -> None:
    """Make Snakemake decide by content what runs again, and keep the outputs of the rules in `KEPT`.

    Snakemake 9 compares times in spite of `rerun-triggers`, and offers no hook to decide otherwise.
    `content` is None in the processes that run single jobs, which decide nothing.
    """
    from snakemake.dag import DAG
    from snakemake.io import _IOFile
    from snakemake.jobs import Job

    check, remove, clean, finish = DAG.check_incomplete, Job.remove_existing_output, Job.cleanup, Job.postprocess

    async def is_newer(self, time):
        return False

    async def check_output_mtime(self, job, expanded_output):
        return None

    async def check_incomplete(self):
        await check(self)
        if content is not None:
            self.forcefiles.update(content.stale(self.jobs, remember=not workflow.dryrun))

    async def remove_existing_output(self):
        if not is_kept(self.rule.name):
            await remove(self)

    async def cleanup(self, skip_outputs):
        if not is_kept(self.rule.name):
            await clean(self, skip_outputs)

    async def postprocess(self, *arguments, error=False, **options):
        await finish(self, *arguments, error=error, **options)
        if content is not None and not error:
            content.note(self)
        if content is None and error:
            # Snakemake has removed the marks of incomplete files, but not the files of rules in KEPT. In a group, the
            # main process would take this job for finished.
            self.dag.workflow.persistence.started(self)

    _IOFile.is_newer = is_newer
    DAG.check_output_mtime = check_output_mtime
    DAG.check_incomplete = check_incomplete
    Job.remove_existing_output = remove_existing_output
    Job.cleanup = cleanup
    Job.postprocess = postprocess
