"""FLARE's statistics for the server of a job that keeps a record: no figure of all sites mixes those that told unlike things."""

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import StatisticsConstants
from nvflare.app_common.statistics.numeric_stats import get_global_stats
from nvflare.app_common.workflows.statistics_controller import StatisticsController

TOGETHER = (StatisticsConstants.STATS_COUNT, StatisticsConstants.STATS_SUM, StatisticsConstants.STATS_MEAN)
DAY = 24 * 3600


class WholeStatistics(StatisticsController):
    """FLARE's controller, which counts all sites, with counts of those alone whose sum came too.

    At a site with few values FLARE's filter keeps the sum back and lets the count pass: 35 of 13 images would be divided by 14.
    """

    @classmethod
    def instead_of(cls, flares: StatisticsController, min_clients: int) -> "WholeStatistics":
        """The same with a smallest number of sites; it waits a day for the others, and not for one that is gone."""
        options = {"enable_pre_run_task": flares.enable_pre_run_task, "precision": flares.precision}
        options |= {"min_clients": min_clients, "wait_time_after_min_received": DAY}
        return cls(flares.statistic_configs, flares.writer_id, **options)

    def statistics_task_flow(self, abort_signal: Signal, fl_ctx: FLContext, statistic_task: str) -> None:
        super().statistics_task_flow(abort_signal, fl_ctx, statistic_task)
        if statistic_task == StatisticsConstants.STATS_1st_STATISTICS:  # the second one starts from what this one found
            told, how = whole(self.client_statistics), (statistic_task, self.statistic_configs, self.precision)
            self.global_statistics = get_global_stats({}, told, *how)


def whole(told: dict[str, dict]) -> dict[str, dict]:
    """Statistic → site → part → feature → value, where a site's count, sum and mean of a feature are all there, or none."""
    parts = [told[name] for name in TOGETHER if name in told]

    def complete(site: str, part: str, features: dict) -> dict:
        return {
            name: value
            for name, value in features.items()
            if all(name in one.get(site, {}).get(part, {}) for one in parts)
        }

    return told | {
        name: {site: {part: complete(site, part, own) for part, own in of.items()} for site, of in told[name].items()}
        for name in TOGETHER
        if name in told
    }
