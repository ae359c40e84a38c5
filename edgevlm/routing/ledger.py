"""What the cloud has cost, by UTC day: `<home>/routing/ledger.sqlite3`.

Before a call the worst that it may cost is reserved, and afterwards settled. A process that
dies in between leaves its reservation, which counts in full: the count is never too low.

A day is the wall clock's, which may be wrong. What is counted for a day is what was booked on
it *or later*: a clock that is set back finds the money of its future spent already.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgevlm.errors import CloudNotAllowed
from edgevlm.routing.prices import dollars, dollars_text, nano
from edgevlm.routing.provider import Provider
from edgevlm.routing.state import Database

FILE = "routing/ledger.sqlite3"

# `cost` is in nano-dollars. A reservation is a row of `reserved` until it is settled.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (
    day TEXT NOT NULL, provider TEXT NOT NULL, cost INTEGER NOT NULL, calls INTEGER NOT NULL,
    unpriced INTEGER NOT NULL, PRIMARY KEY (day, provider)
);
CREATE TABLE IF NOT EXISTS reserved (
    id INTEGER PRIMARY KEY, day TEXT NOT NULL, provider TEXT NOT NULL, cost INTEGER NOT NULL
);
"""
_SETTLE = """
INSERT INTO spent VALUES (:day, :provider, :cost, 1, :unpriced)
ON CONFLICT (day, provider) DO UPDATE SET
    cost = cost + excluded.cost, calls = calls + 1, unpriced = unpriced + excluded.unpriced
"""


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class Spending:
    """US dollars. `reserved` is the part that no answer has settled; `unpriced` counts calls of
    models whose price is unknown, which are in no sum."""

    day: float
    month: float
    reserved: float
    calls: int
    unpriced: int
    later: float


@dataclass(frozen=True, slots=True)
class Reservation:
    id: int
    day: str
    provider: str
    cost: int | None


class Ledger:
    """Several processes and threads may keep one. Raises CloudNotAllowed where it can't be kept."""

    def __init__(self, home: Path, now: Callable[[], datetime] = utc_now) -> None:
        self._database = Database(home / FILE, _SCHEMA, synchronous="FULL")
        self._now = now

    def reserve(self, provider: Provider, cost: int | None) -> Reservation:
        """Book the worst that a call may cost, in nano-dollars; None where the price is unknown.

        Raises CloudNotAllowed where a budget would be exceeded, or can't be kept.
        """
        day = self._today()
        with self._errors(), self._database.change() as database:
            _check_budgets(database, provider, cost, day)
            row = database.execute(
                "INSERT INTO reserved (day, provider, cost) VALUES (?, ?, ?)",
                (day, provider.id, cost or 0),
            )
            assert row.lastrowid is not None
            return Reservation(row.lastrowid, day, provider.id, cost)

    def check(self, provider: Provider, cost: int | None) -> None:
        """Raise what `reserve` would, and book nothing."""
        with self._errors(), self._database.open() as database:
            _check_budgets(database, provider, cost, self._today())

    def settle(self, reservation: Reservation, cost: int | None) -> None:
        """Book what the call did cost, on the day that it was reserved for."""
        values = {
            "day": reservation.day,
            "provider": reservation.provider,
            "cost": cost or 0,
            "unpriced": cost is None,
        }
        with self._errors(), self._database.change() as database:
            gone = database.execute("DELETE FROM reserved WHERE id = ?", (reservation.id,))
            if gone.rowcount:
                database.execute(_SETTLE, values)

    def release(self, reservation: Reservation) -> None:
        """Take back a reservation of a call that the provider never got, or refused."""
        with self._errors(), self._database.open() as database:
            database.execute("DELETE FROM reserved WHERE id = ?", (reservation.id,))

    def spending(self) -> Spending:
        """What was spent this UTC day and month, all providers together. `later` is what is
        booked on days to come, by a clock that was wrong: it counts until they are past."""
        day = self._today()
        with self._errors(), self._database.open() as database:
            calls, unpriced = database.execute(
                "SELECT coalesce(sum(calls), 0), coalesce(sum(unpriced), 0) FROM spent"
                " WHERE day >= ?",
                (_month(day),),
            ).fetchone()
            (open_cost,) = database.execute(
                "SELECT coalesce(sum(cost), 0) FROM reserved WHERE day >= ?", (_month(day),)
            ).fetchone()
            # "~" comes after every digit and '-': all that is later than the whole day.
            return Spending(
                day=dollars(_since(database, day)),
                month=dollars(_since(database, _month(day))),
                reserved=dollars(open_cost),
                calls=calls,
                unpriced=unpriced,
                later=dollars(_since(database, f"{day}~")),
            )

    def mean_cost(self, provider: Provider) -> float | None:
        """US dollars a call of this provider has cost on average; None where there was none."""
        with self._errors(), self._database.open() as database:
            cost, calls = database.execute(
                "SELECT coalesce(sum(cost), 0), coalesce(sum(calls - unpriced), 0) FROM spent"
                " WHERE provider = ?",
                (provider.id,),
            ).fetchone()
        return dollars(cost) / calls if calls else None

    def close(self) -> None:
        self._database.close()

    def _today(self) -> str:
        return self._now().astimezone(timezone.utc).strftime("%Y-%m-%d")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CloudNotAllowed(
                f"The ledger {self._database.path} can't be kept ({error}), and nothing is sent"
                " without it.",
                hint="Free some space, or see to its permissions; where it is broken, remove it.",
            ) from error


def _check_budgets(
    database: sqlite3.Connection, provider: Provider, cost: int | None, day: str
) -> None:
    budgets = (
        ("day", provider.budget_day, day),
        ("month", provider.budget_month, _month(day)),
    )
    for period, budget, since in budgets:
        if budget is None:
            continue
        if cost is None:
            raise CloudNotAllowed(
                f"There is a budget, and what {provider.called} costs is unknown.",
                hint="Give its prices: `edgevlm cloud set --price-in USD --price-out USD`.",
            )
        spent = _since(database, since)
        if spent + cost > nano(budget):
            raise CloudNotAllowed(
                f"The budget of the {period} is {dollars_text(budget)}:"
                f" {dollars_text(dollars(spent))} of it are spent, and this may cost"
                f" {dollars_text(dollars(cost))}.",
                hint=f"Wait for the next {period} (UTC), or set another with `edgevlm cloud set`.",
            )


def _since(database: sqlite3.Connection, day: str) -> int:
    """Nano-dollars that are spent or reserved on that day, or later."""
    (cost,) = database.execute(
        "SELECT (SELECT coalesce(sum(cost), 0) FROM spent WHERE day >= :day)"
        " + (SELECT coalesce(sum(cost), 0) FROM reserved WHERE day >= :day)",
        {"day": day},
    ).fetchone()
    return int(cost)


def _month(day: str) -> str:
    """Where the month of `day` begins, among days in alphabetical order."""
    return f"{day[:7]}-01"
