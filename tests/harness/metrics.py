"""Scrapes of ``/metrics``, read by Prometheus's own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.harness.api import Api

__all__ = ["Scrape", "scrape"]


# These depend on the clock, on sampling or on a cache, not only on what was done.
_SAMPLED = (
    "steadwire_loop_lag_seconds_count",
    "steadwire_queue_depth_bytes_count",
    "steadwire_publish_to_write_seconds_count",
    "steadwire_store_reads_total",
    "steadwire_sweeps_total",
)


class Scrape:
    """The result of one scrape.

    Attributes:
        types: The type of each family, by its name.
        help: What each family is.
        label_names: The label of each sample, by its name; "" without one.
    """

    def __init__(self, text: str) -> None:
        self.types: dict[str, str] = {}
        self.help: dict[str, str] = {}
        self.label_names: dict[str, str] = {}
        self._samples: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            self.help[family.name] = family.documentation
            for sample in family.samples:
                assert len(sample.labels) <= 1, sample
                label = next(iter(sample.labels.values()), "")
                self.label_names[sample.name] = next(iter(sample.labels), "")
                key = (sample.name, label)
                assert key not in self._samples, f"{key} is there twice"
                self._samples[key] = sample.value

    def __getitem__(self, name: str) -> float:
        """Return ``name`` or ``name{label}``, without our prefix."""
        name, _, label = name.rstrip("}").partition("{")
        return self._samples[f"steadwire_{name}", label]

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self._samples}

    def values_of(self, name: str) -> set[str]:
        """Return the values that the label of the sample *name* has."""
        return {label for sample, label in self._samples if sample == name}

    def labels(self, name: str) -> dict[str, float]:
        """Return the values of *name*, without our prefix, by its label."""
        name = f"steadwire_{name}"
        return {label: v for (n, label), v in self._samples.items() if n == name}

    def since(self, before: Scrape) -> dict[str, float]:
        """Return how our counters have grown, those that have and are exact."""
        grown = {}
        for (name, label), value in self._samples.items():
            counter = name.endswith(("_total", "_count")) and name not in _SAMPLED
            if counter and name.startswith("steadwire_"):
                more = value - before._samples.get((name, label), 0.0)
                if more:
                    short = name.removeprefix("steadwire_")
                    grown[f"{short}{{{label}}}" if label else short] = more
        return grown


async def scrape(api: Api) -> Scrape:
    """Return what ``/metrics`` says now."""
    response = await api.request("GET", "/metrics", headers={"X-API-Key": api.key})
    assert response.status == 200
    return Scrape(response.body.decode())
