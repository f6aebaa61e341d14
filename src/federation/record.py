"""Reads the record that :class:`src.federation.server.RunRecorder` writes: how far a run is, what it lacks, why it failed."""

import json
import re
from collections import Counter
from itertools import takewhile
from pathlib import Path

from src.common.errors import CourseError
from src.common.files import read_json
from src.federation.server import RECORD


def read_record(folder: Path) -> list[dict]:
    """The lines of the record below a folder, oldest first; none before the server starts; a ``CourseError`` if one is damaged."""
    file = next(iter(Path(folder).rglob(RECORD)), None)
    lines = file.read_text(errors="replace").splitlines(keepends=True) if file else []
    try:
        # The last line may still be in the writing while the run goes on.
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
        if all("event" in entry for entry in entries):
            return entries
        raise ValueError("a line is no event")
    except (TypeError, ValueError) as error:
        raise CourseError(f"The record {file} is damaged: {error}. Fetch the run again, or make it anew.") from error


def progress(record: list[dict]) -> tuple[int, int, int]:
    """Number of the round that goes on, counted from 1 (0 before the first), number of rounds, number of accepted answers."""
    started = [entry for entry in record if entry["event"] == "round started"]
    answers = sum(entry["event"] == "answer" and entry["accepted"] for entry in record)
    return (started[-1]["round"] + 1, started[-1]["rounds"], answers) if started else (0, 0, 0)


def shortfall(folder: Path) -> str | None:
    """What a run that ended lacks of its rounds, and in each of the sites that its job demands; None if nothing, or unknown."""
    record = read_record(folder)
    if not record:
        jobs = Path(folder).glob("job/*/*/config/config_fed_server.json")
        wants_record = any("RunRecorder" in file.read_text() for file in jobs)
        return "The run ended before the server started: no site took part." if wants_record else None
    number, rounds, _ = progress(record)
    accepted = {(entry["round"], entry["site"]) for entry in record if entry.get("accepted")}
    told = Counter(number for number, _ in accepted)  # how many sites in each round, or outside of rounds
    if not told:
        return "The run ended without a single update from a site."
    if number < rounds or sum(entry["event"] == "model saved" for entry in record) < rounds:
        return f"The run ended in round {number} of {rounds}."
    demanded = (next(map(read_json, Path(folder).glob("job/*/meta.json")), None) or {}).get("min_clients", 1)
    if not rounds and told[None] < demanded:
        return f"The job needs the answers of {demanded} site(s); {told[None]} gave one."
    if few := [number + 1 for number in range(rounds) if told[number] < demanded]:
        return f"The job needs {demanded} site(s) in each round; there were fewer in round {few[0]} of {rounds}."
    return None


def failure_report(run_folder: Path, workspace: Path, sites: list[str]) -> str:
    """Why a run failed: round, sites and kinds of fault, and which process's own log in the simulator's ``workspace`` says more."""
    record = read_record(run_folder)
    # Afterwards, sites are lost because the run stops.
    before = takewhile(lambda entry: entry["event"] != "run stopped", record)
    failed = [entry for entry in before if entry["event"] == "site lost" or not entry.get("accepted", True)]
    causes = {entry["site"]: entry["reason"] for entry in failed}
    for name in () if causes else (*sites, "server"):
        log = workspace / name / "error_log.txt"
        # The kind of the first exception: the name of its class, never its message.
        kind = r"^(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit))\b"
        if found := re.search(kind, log.read_text(errors="replace") if log.is_file() else "", re.MULTILINE):
            causes[name] = f"its software raised {found[1]}"
    causes = causes or dict(*[{"server": entry["reason"]} for entry in record if entry["event"] == "run stopped"][:1])
    number, rounds, _ = progress(record)
    tasks = [f"at the task {entry['task']}" for entry in record if entry["event"] == "asked" and entry["round"] is None]
    where = f"in round {number} of {rounds}" if number else tasks[-1] if tasks else "before the first round"
    said = "; ".join(f"{name}: {cause}" for name, cause in causes.items()) or "no process left an error"
    logs = ", ".join(str(workspace / name / "log.txt") for name in causes) or run_folder / "console.log"
    return f"The run failed {where}. {said}. More is in the log of its own: {logs}."
