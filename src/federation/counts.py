"""FLARE's statistics without a figure of all sites that mixes those that told unlike things."""

from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import StatisticsConstants as Stats
from nvflare.app_common.statistics.numeric_stats import get_global_stats
from nvflare.app_common.workflows.statistics_controller import StatisticsController


class WholeStatistics(StatisticsController):
    """FLARE's controller, with the number of those sites alone whose sum came too.

    At a site with few values FLARE's filter keeps the sum back and lets the count pass: 35 of 13 images would be divided by 14."""

    def statistics_task_flow(self, abort_signal: Signal, fl_ctx: FLContext, statistic_task: str) -> None:
        super().statistics_task_flow(abort_signal, fl_ctx, statistic_task)
        if statistic_task == Stats.STATS_1st_STATISTICS:  # the second one starts from what this one found
            told, how = whole(self.client_statistics), (statistic_task, self.statistic_configs, self.precision)
            self.global_statistics = get_global_stats({}, told, *how)


def whole(told: dict[str, dict]) -> dict[str, dict]:
    """Statistic → site → part → feature → value, without a count where a sum was asked for and did not come."""
    sums, counts = told.get(Stats.STATS_SUM), {}
    for site, parts in told.get(Stats.STATS_COUNT, {}).items() if sums else ():
        came = {part: sums.get(site, {}).get(part, {}) for part in parts}
        counts[site] = {part: {name: own[name] for name in own if name in came[part]} for part, own in parts.items()}
    return told | ({Stats.STATS_COUNT: counts} if sums else {})
