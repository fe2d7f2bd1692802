"""What is to be measured, from the environment."""

import dataclasses
import os
import sys

ENV = os.environ


@dataclasses.dataclass
class Settings:
    events: int
    rounds: int
    rates: list  # events a second
    minutes: float  # of each rate
    kills: int
    huge_rows: int
    standstill_seconds: float
    history_rows: int
    soak_minutes: float
    sinks: list
    http: bool
    emulator: bool
    debezium: bool

    @staticmethod
    def read():
        return Settings(
            events=number("EVENTS", 1_000_000), rounds=number("ROUNDS", 3),
            rates=[number("RATES", text, text) for text in words("RATES", "3333,10000,25000") if text != "0"],
            minutes=number("MINUTES", 2, kind=float), kills=number("KILLS", 10), huge_rows=number("HUGE", 1_000_000),
            standstill_seconds=number("STANDSTILL", 60, kind=float),
            history_rows=number("HISTORY", 1_000_000),
            soak_minutes=number("SOAK_MINUTES", 0, kind=float), sinks=words("SINKS", "kafka,redis,bigquery"),
            http=ENV.get("HTTP") != "off", emulator=ENV.get("BIGQUERY") == "emulator", debezium=ENV.get("DEBEZIUM") != "off")

    def with_http(self):
        """The sinks, and HTTP."""
        return self.sinks + ["http"] * (self.http and "http" not in self.sinks)


def words(name, default):
    return [word for word in (ENV.get(name) or default).split(",") if word]


def number(name, default, text=None, kind=int):
    text = text or ENV.get(name) or str(default)
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        sys.exit(f"bench: {name}={text}: give a number of 0 or above")
    return value
