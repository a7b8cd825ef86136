"""The arrays of a page: which events they cover, how they are written, what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvcompress.analysis.report.cuts import count_evictions, lowest_kept
from kvcompress.analysis.report.encoding import (
    Array,
    Coding,
    Encoded,
    choose,
    encode_exact,
    encode_floats,
    encode_half,
    encode_integers,
    size_of,
)
from kvcompress.analysis.report.thinning import (
    Limits,
    events_within,
    halving,
    per_head,
    per_layer,
    spread,
    whole_numbers,
)
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.summary.schema import PREFILL

STATISTICS: Final = (
    *("entropy", "entropy_normalised", "maximum", "variance", "density", "sink_mass", "recent_mass", "diagonal_mass"),
    *("prompt_mass", "learned_sink_mass", "coverage"),
)
PROFILES: Final = ("position_mass", "distance_mass", "top_positions", "top_mass")
OVER_TIME: Final = ("entropy", "maximum", "sink_mass", "recent_mass")
KEY_VALUE: Final = ("scale", "sparsity", "dimension_sparsity", "energy", "singular_values")
_LEAST_TO_THIN = 8  # events of a kind that a page always has


@dataclass(frozen=True, slots=True, kw_only=True)
class PageEvents:
    """Which events the page covers, by number.

    Attributes:
        page: steps of the time slider.
        statistics: those of them with statistics per head.
        profiles: those of them with masses by position and distance.
    """

    page: list[int]
    statistics: list[int]
    profiles: list[int]


def choose_events(sample: Sample, limits: Limits, samples: int = 1) -> PageEvents:
    """Chooses the events of a page: all where they fit, else prefills first, then evenly."""
    prefills = [event for event, kind in enumerate(sample.kinds.tolist()) if kind == PREFILL]
    page = spread(range(sample.events), limits.events, prefills[: limits.events // 2])
    model = sample.summary.model
    heads, room = model.layers * model.query_heads, limits.of_sample(samples)
    shape = {name: sample.tensor(f"attention.{name}").shape[3:].numel() for name in (*STATISTICS, *PROFILES)}
    first = prefills[:_LEAST_TO_THIN]
    of_statistics = 2 * heads * sum(shape[name] for name in STATISTICS)
    of_profiles = 2 * heads * sum(shape[name] for name in PROFILES)
    statistics = events_within(page, of_statistics, int(room * limits.statistics), first)
    profiles = events_within(statistics, of_profiles, int(room * limits.profiles), first)
    return PageEvents(page=page, statistics=statistics, profiles=profiles)


class Arrays:
    """Collects the encoded arrays of a page within its limits.

    Args:
        sample: the sample.
        events: the events that the page covers.
        limits: bounds of the page.
        room: bytes of text that all arrays may take.

    Attributes:
        encoded: name -> encoded array.
        codings: name -> how it was written, for arrays that may be rounded.
        notes: what was thinned, in sentences.
        mass_events: events whose mass per token is in the page.
        heatmap_events: events whose map of queries by keys is in the page.
        last_prefill: number of the last prefill event, whose lowest kept scores are in the page; None without one.
    """

    def __init__(self, sample: Sample, events: PageEvents, limits: Limits, room: int) -> None:
        self.encoded: dict[str, Encoded] = {}
        self.codings: dict[str, str] = {}
        self.notes: list[str] = []
        self.mass_events: list[int] = []
        self.heatmap_events: list[int] = []
        self.last_prefill: int | None = None
        self._sample, self._events, self._limits, self._room = sample, events, limits, room

    def add_all(self) -> None:
        """Adds every array, the masses per token last: they take what the others leave."""
        self._note_events()
        if self._sample.summary.tokens is None:
            self.encoded["token.ids"] = encode_integers(self._array("token.ids"))
        self._add_statistics()
        if self._sample.compressed:
            self._add_compression()
        self._add_keys_and_values()
        self._add_heatmaps()
        self._add_within("token.influence", per_layer("Masses that decoded tokens paid"), self._limits.influence)
        self._add_masses()
        self.notes = list(dict.fromkeys(self.notes))

    def _left(self, share: float = 1.0) -> int:
        """Bytes that an array may take: its share, at most what others have left."""
        return min(int(share * self._room), self._room - sum(map(size_of, self.encoded.values())))

    def _array(self, name: str, events: Sequence[int] | None = None) -> Array:
        tensor = self._sample.tensor(name)
        array: Array = (tensor if events is None else tensor[list(events)]).numpy()
        return array

    def _note_events(self) -> None:
        sample, events = self._sample, self._events
        for chosen, what in (
            (events.page, "The time slider has"),
            (events.statistics, "Statistics per head are of"),
            (events.profiles, "Masses by position and distance, and top positions, are of"),
        ):
            if len(chosen) < sample.events:
                self.notes.append(f"{what} {len(chosen)} of {sample.events} events.")

    def _add_statistics(self) -> None:
        for name in STATISTICS:
            self.encoded[f"attention.{name}"] = encode_floats(self._array(f"attention.{name}", self._events.statistics))
        for name in PROFILES:
            encode = encode_integers if name == "top_positions" else encode_half
            self.encoded[f"attention.{name}"] = encode(self._array(f"attention.{name}", self._events.profiles))
        self.encoded["attention.keys"] = encode_floats(self._array("attention.keys", self._events.page))
        for name in OVER_TIME:
            means = self._array(f"attention.{name}", self._events.page).mean(-1, dtype=np.float64)
            self.encoded[f"over_time.{name}"] = encode_floats(means)

    def _add_keys_and_values(self) -> None:
        for what in ("key", "value"):
            self._add_within(f"kv.{what}_norm", per_head(f"Norms of {what}s"), self._limits.norms)
            for name in KEY_VALUE:
                self.encoded[f"kv.{what}_{name}"] = encode_floats(self._array(f"kv.{what}_{name}"))

    def _add_compression(self) -> None:
        for name in ("preference", "entropy", "variance"):
            self.encoded[f"compression.{name}"] = encode_exact(self._array(f"compression.{name}"))
        self.encoded["compression.budget"] = encode_integers(self._array("compression.budget"))
        self.encoded["compression.held"] = encode_integers(self._array("compression.held", self._events.page))
        for name in ("evicted_event", "evicted_stage"):
            share = self._limits.evictions / 2
            self._add_within(f"compression.{name}", whole_numbers(), share, "When each token was evicted")
        self._add_within("compression.score", per_head("Scores"), self._limits.scores, "The policy's scores")
        event, stage = self._array("compression.evicted_event"), self._array("compression.evicted_stage")
        self._add_cuts(event, stage)
        counts = count_evictions(event, stage, self._sample.events)
        self.encoded["evictions"] = encode_integers(np.add.reduceat(counts, [0, *np.add(self._events.page[:-1], 1)]))

    def _add_cuts(self, evicted_event: Array, evicted_stage: Array) -> None:
        prefills = [event for event, kind in enumerate(self._sample.kinds.tolist()) if kind == PREFILL]
        if not prefills:
            return
        self.last_prefill = prefills[-1]
        cuts = lowest_kept(
            self._array("compression.score"),
            evicted_event,
            evicted_stage,
            event=self.last_prefill,
            tokens=int(self._array("event.tokens")[self.last_prefill]),
            sink_tokens=int((self._sample.summary.policy or {}).get("sink_tokens", 0)),
        )
        self.encoded["cuts"] = encode_exact(cuts)

    def _add_heatmaps(self) -> None:
        events = self._array("heatmap.event").tolist()
        limit, maps = self._left(self._limits.heatmaps), self._sample.tensor("heatmap.mass")
        for place in halving(range(len(events))):
            codings = per_head(f"The map of event {events[place]}: its masses")
            found = choose(maps[place].numpy(), codings, limit)
            if found is None:
                break
            encoded, coding = found
            self.encoded[f"heatmap.{events[place]}"] = encoded
            self._note(coding)
            self.heatmap_events.append(events[place])
            limit -= size_of(encoded)
        self.heatmap_events.sort()
        self._note_part("Maps of queries by keys", self.heatmap_events, events)

    def _add_masses(self) -> None:
        stored, limit = self._sample.token_mass_events, self._left()
        for event in halving(stored):
            coded = choose(self._sample.token_mass(event).numpy(), per_layer(f"Masses of event {event}"), limit)
            if coded is None:
                break
            encoded, coding = coded
            self.encoded[f"mass.{event}"] = encoded
            self._note(coding)
            self.mass_events.append(event)
            limit -= size_of(encoded)
        self.mass_events.sort()
        self._note_part("Masses per token", self.mass_events, range(self._sample.events))

    def _add_within(self, name: str, codings: Sequence[Coding], share: float, what: str | None = None) -> None:
        found = choose(self._array(name), codings, self._left(share))
        if found is None:
            self.notes.append(f"{what or name}: it would not fit; kvcompress.analysis.summary.reader reads it.")
            return
        self.encoded[name], coding = found
        self.codings[name] = coding.name
        self._note(coding)

    def _note(self, coding: Coding) -> None:
        if coding.note:
            self.notes.append(coding.note)

    def _note_part(self, what: str, chosen: Sequence[int], of: Sequence[int]) -> None:
        if len(chosen) < len(of):
            shown = ", ".join(map(str, chosen[:12])) + (", ..." if len(chosen) > 12 else "")
            self.notes.append(f"{what} are of {len(chosen)} of {len(of)} events: {shown or 'none'}.")
