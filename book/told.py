"""What sites told with FLARE's ``FedStatsRecipe``, read from its file: a table, and what the filters kept back in sentences."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

ALL = "Global"  # what FLARE calls all sites together


def _told(statistics: Mapping) -> pd.DataFrame:
    """A row for each feature, statistic and site, with its value."""
    rows = [
        (feature, name, site, value)
        for feature, told in statistics.items()
        for name, by_site in told.items()
        for site, parts in by_site.items()
        for value in parts.values()
    ]
    return pd.DataFrame(rows, columns=["feature", "statistic", "site", "value"])


def table(statistics: Mapping, sites: Sequence[str]) -> pd.DataFrame:
    """A row for each feature and statistic but histograms, a column a site, then ``all`` of them; empty is what did not come."""
    numbers = _told(statistics).query("statistic != 'histogram'")
    made = numbers.pivot_table("value", ["feature", "statistic"], "site", aggfunc="first", sort=False)
    return made.reindex(columns=[*sites, ALL]).rename(columns={ALL: "all"})


def kept_back(statistics: Mapping, sites: Sequence[str], asked: Iterable[str]) -> list[str]:
    """A sentence for each site and feature of which FLARE's filters let not all pass that the recipe ``asked``."""
    told, said = {*_told(statistics)[["feature", "statistic", "site"]].itertuples(index=False, name=None)}, []
    for site in sites:
        for feature in statistics:
            if missing := [name for name in asked if (feature, name, site) not in told]:
                why = "for so many bins" if missing == ["histogram"] else "to tell more than their number"
                said.append(f"{site} kept back the {', '.join(missing)} of its {feature}: it has too few values {why}.")
    return said
