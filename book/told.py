"""What sites told with FLARE's ``FedStatsRecipe``, read from its file: a table, and what the filters kept back in sentences."""

from collections.abc import Mapping, Sequence

import pandas as pd
from nvflare.app_common.app_constant import StatisticsConstants

from src.common.errors import CourseError

ALL = "Global"  # what FLARE calls all sites together
KNOWN = sorted({name for names in StatisticsConstants.ordered_statistics.values() for name in names})


def _told(statistics: Mapping) -> pd.DataFrame:
    """A row for each feature, statistic, part of the data and site, with its value."""
    rows = [
        (feature, name, part, site, value)
        for feature, told in statistics.items()
        for name, by_site in told.items()
        for site, parts in by_site.items()
        for part, value in parts.items()
    ]
    return pd.DataFrame(rows, columns=["feature", "statistic", "part", "site", "value"])


def table(statistics: Mapping, sites: Sequence[str]) -> pd.DataFrame:
    """A row for each feature and statistic but histograms, and for each part of the data where there are several; a column a site,
    then ``all`` of them; empty is what did not come."""
    numbers = _told(statistics).query("statistic != 'histogram'")
    index = ["feature", "statistic", "part"][: 3 if numbers["part"].nunique() > 1 else 2]
    made = numbers.pivot_table("value", index, "site", aggfunc="first", sort=False)
    return made.reindex(columns=[*sites, ALL]).rename(columns={ALL: "all"})


def kept_back(statistics: Mapping, sites: Sequence[str], asked: Sequence[str]) -> list[str]:
    """A sentence for each site that told nothing, and for each feature of which FLARE's filters let not all pass that the recipe
    ``asked``; a ``CourseError`` for a text instead of a list, and for a statistic that FLARE does not know."""
    if isinstance(sites, str) or isinstance(asked, str) or not {*asked} <= {*KNOWN}:
        due = f"a list of sites, and one of {', '.join(KNOWN)}"
        raise CourseError(f"There are no statistics {asked!r} of {sites!r}; give {due}.")
    found, said = {*_told(statistics)[["feature", "statistic", "site"]].itertuples(index=False, name=None)}, []
    told = dict.fromkeys(site for _, _, site in found if site != ALL)
    for site in sites:
        if site not in told:
            said.append(f"{site} told nothing ({', '.join(sorted(told))} did); Run(...).left_out says why.")
        for feature in statistics if site in told else ():
            if missing := [name for name in asked if (feature, name, site) not in found]:
                why = "for so many bins" if missing == ["histogram"] else "to tell more than their number"
                said.append(f"{site} kept back the {', '.join(missing)} of its {feature}: it has too few values {why}.")
    return said
