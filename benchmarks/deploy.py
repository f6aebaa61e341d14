"""The tables of ``docs/deploy.md``, made from the kept reports: ``python -m benchmarks.deploy``.

To renew the reports: ``python -m benchmarks.faults`` and ``python -m benchmarks.lines``.
"""

import json
import re
import sys
from pathlib import Path

from src.common.files import write_file

REPORTS = Path(__file__).with_name("results") / "federation"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "deploy.md"
FAULTS = {
    "test_a_site_killed_in_mid_round_is_missed_once_and_comes_back": (
        "a site is killed in mid-round and started again",
        "a round goes on with `min_clients`; FLARE by itself promises nothing of running jobs to a site that registers anew",
        "missed in that round, back in a later one (with `ReturningSites`)",
    ),
    "test_the_others_go_on_when_a_site_stays_away": (
        "a site is killed and stays away",
        "lost after `heart_beat_timeout`; the round goes on",
        "the others finish; the record names the site and the round",
    ),
    "test_a_run_that_needs_all_ends_when_one_is_lost": (
        "the same, and the job needs all sites",
        "the job ends",
        "`FINISHED:EXECUTION_EXCEPTION`, with the site's name in the record",
    ),
    "test_a_kit_that_runs_twice_is_named_and_the_job_goes_on": (
        "a kit runs on two machines",
        "each takes the other's place; FLARE by itself tells nobody",
        "the log and the record name the site; the others go on if they are enough (with `ReturningSites`)",
    ),
    "test_a_job_for_more_sites_than_there_are_is_taken_out_of_the_queue": (
        "a job for more sites than there are",
        "it waits in the queue, and starts when they come",
        "`not started: 3 of 4 sites are there`, and who is missing; it is taken out of the queue",
    ),
    "test_a_foreign_and_an_expired_certificate_are_refused": (
        "a foreign or an expired certificate",
        "mutual TLS refuses it",
        "the server ends the handshake; with a stranger's root the site does",
    ),
    "test_a_site_whose_certificate_has_expired_does_not_register_and_does_with_a_new_one": (
        "a site starts with an expired certificate",
        "it does not register",
        "it does not, and its log does not say why; with a new certificate it does",
    ),
    "test_a_user_without_the_role_may_look_and_not_submit": (
        "a user without the role submits a job",
        "refused",
        "`AuthorizationError`; no job is made",
    ),
    "test_nobody_reads_a_site_s_files_from_afar": (
        "the project's administrator reads a site's log from afar",
        "refused, where the site's rules forbid it",
        "`AuthorizationError`, for `ls`, `cat`, `head`, `tail` and `grep`",
    ),
    "test_a_site_that_allows_no_code_refuses_a_job_that_brings_some": (
        "a job brings code to a site that allows none",
        "the site refuses the job",
        "`BYOC not permitted`; the others go on if they are enough; no code stays there",
    ),
    "test_a_site_refuses_a_class_that_is_not_on_its_list": (
        "a job names a class that is not on the site's list",
        "the site refuses the job",
        "the job ends; the site's log names the class",
    ),
    "test_a_server_that_stops_in_round_three_loses_the_round_and_not_the_model": (
        "the server is killed in round 3 and started again",
        "sites dial again; the job does not go on",
        "the last whole round's model is on its disk, and a new job goes on from it; the old job stays marked `RUNNING`",
    ),
    "test_however_its_owner_ends_no_process_port_or_file_is_left[killed]": (
        "whoever started a federation on one machine is killed",
        "(the course's guard)",
        "no process, port or file is left",
    ),
}


def _report(name: str) -> dict:
    file = REPORTS / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def fault_table() -> str:
    """Fault, what one would expect, what was seen, in how many of how many tries. A fault without kept tries has a dash."""
    counts = _report("faults.json").get("counts", {})
    lines = ["| fault | what one would expect | what was seen | tries |", "|---|---|---|--:|"]
    for test, (fault, promise, seen) in FAULTS.items():
        tries = "{passed} of {of}".format(**counts[test]) if test in counts else "–"
        lines.append(f"| {fault} | {promise} | {seen} | {tries} |")
    return "\n".join(lines)


def line_table() -> str:
    """Bytes, seconds and accuracy of a round for each way to send models and each line."""
    report = _report("lines.json")
    if not report:
        return "Not measured yet: no report is kept."
    lines = ["| what is sent | line | down | up | seconds of a round | of them training | test accuracy |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|"]
    for way, runs in report.get("runs", {}).items():
        for line, run in runs.items():
            sizes = " | ".join(f"{run[key] / 1e6:.1f} MB" for key in ("bytes_down", "bytes_up"))
            rounds = f"{run['test_accuracy']:.3f} after {run['rounds']} rounds"
            seconds = f"{run['round_seconds']:.0f} | {run['training_and_validation_seconds']:.0f}"
            lines.append(f"| {way} | {line} | {sizes} | {seconds} | {rounds} |")
    return "\n".join(lines)


TABLES = {"faults": fault_table, "lines": line_table}


def with_tables(text: str) -> str:
    """``text`` with what stands between the marks of each table renewed."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name}: made by python -m benchmarks.deploy -->", f"<!-- end of {name} -->"
        new = f"{start}\n{make()}\n{end}"
        text = re.sub(rf"{re.escape(start)}.*?{re.escape(end)}", lambda _, new=new: new, text, flags=re.DOTALL)
    return text


def main() -> int:
    """Renew the tables."""
    write_file(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
