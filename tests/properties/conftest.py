"""The same inputs every time, and none kept from one run to the next."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=60,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
settings.load_profile("repeatable")
