"""The page of ``mrjudge report``: HTML, style and script, put together by ``mrjudge_reward.monitoring.report.page``."""
