"""What a federated run costs: where its wall time went, and how many bytes travelled."""

from src.federation.run import Run


def parts(run: Run) -> dict[str, float]:
    """Where the wall time went, in seconds.

    ``training`` and ``validation`` are what the slowest site of each round streamed. ``start-up`` ends when the first site
    has the model and begins to work, ``transfer and averaging`` is what is left of the rounds, ``final validation`` comes
    after them, and ``shut-down`` after that.
    """
    times = run.curve("seconds_training"), run.curve("seconds_validation").loc[: run.rounds - 1]
    # Only what the slower site needs is waited for: the sum of both, per site, then the maximum.
    busy = times[0].add(times[1], fill_value=0)
    first = [entry for entry in run.record if entry["event"] == "answer" and entry["round"] == 0]
    at = {entry["event"]: entry["time"] for entry in run.record}
    work = min(entry["time"] - busy.loc[0, entry["site"]] for entry in first if entry["site"] in busy.columns)
    rounds_end = at.get("final validation", at["run ended"])
    started = run.about.get("started", run.record[0]["time"])
    slowest = busy.idxmax(axis=1)
    training, validation = (sum(one.loc[number, site] for number, site in slowest.items()) for one in times)
    return {
        "start-up": float(work - started),
        "training": float(training),
        "validation": float(validation),
        "transfer and averaging": float(rounds_end - work - training - validation),
        "final validation": float(at["run ended"] - rounds_end),
        "shut-down": float(started + run.seconds - at["run ended"]),
    }


def megabytes_per_round(run: Run) -> float:
    """Weights that travel in one round to all sites and back, in units of 1,000,000 bytes."""
    weights = run.weights(run.final_model).values()
    return 2 * len(run.sites) * sum(one.numel() * one.element_size() for one in weights) / 1e6
