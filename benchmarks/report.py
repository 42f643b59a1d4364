"""Report of all benchmarks: runs each and writes its figures into docs/benchmarks.md.

    python benchmarks/report.py [--from DIRECTORY] [--only NAME ...]

Each script writes its figures to a JSON file (in DIRECTORY, where they are read again
with ``--from``). The tables between the marks in docs/benchmarks.md are replaced; the
prose around them is written by hand. The plots go to docs/benchmarks/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from load import describe

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
SCRIPTS = (
    "codec",
    "protobuf",
    "delta",
    "serialize",
    "ping",
    "backoff",
    "store",
    "budget",
    "server",
    "load",
    "refresh",
    "runs",
)
CONNECTIONS = "connections"  # needs Node's ws, as PEERS does; by --only
PEERS = "peers"  # needs other servers: `make bench-peers` alone runs it


def collect(directory, names):
    """Run the scripts of these names."""
    for name in names:
        print(f"== {name}", flush=True)
        subprocess.run(
            [
                sys.executable,
                str(HERE / f"bench_{name}.py"),
                "--json",
                str(directory / f"{name}.json"),
            ],
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            check=True,
            timeout=900,
        )


def contestants(report):
    """Return the table of a script that compares contestants on payloads."""
    lines = [
        "| payload | contestant | min ns | median ns | times compiled |",
        "|---|---|---:|---:|---:|",
    ]
    for payload, rows in report["payloads"].items():
        for name, row in rows.items():
            lines.append(
                f"| {payload} | {name} | {row['min_ns']:,.0f} | "
                f"{row['median_ns']:,.0f} | {row['ratio_min']:.2f} |"
            )
    for target in report.get("targets", ()):
        met = "met" if target["met"] else "**missed**"
        lines.append("")
        lines.append(
            f"Target {target['wanted']:g} times {target['than']}: "
            f"{target['ratio']:.2f}, {met}."
        )
    return lines


def server(report):
    lines = [
        "| | rival | ours | rival again | ratio | target |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for key, title, target in (
        ("a", "(a) publish and receive, CPU µs a message", 2.2),
        ("b", "(b) one to 1,000, CPU µs a delivery", 1.15),
    ):
        row = report[key]
        lines.append(
            f"| {title} | {row['rival']['cpu_us']:.1f} | {row['ours']['cpu_us']:.1f} | "
            f"{row['rival_again']['cpu_us']:.1f} | {row['ratio']:.2f} | {target} |"
        )
    mine, bare = report["a"]["ours"], report["a"]["rival"]
    lines += [
        "",
        "Against the echo on our own server adapter: "
        f"(a) {report['a']['ratio_to_adapted']:.2f}, "
        f"(b) {report['b']['ratio_to_adapted']:.2f}.",
        "",
        f"Latency of (a) at 2,000 messages a second, from the scheduled send: "
        f"p50 {mine['p50_ms']:.2f} ms, p99 {mine['p99_ms']:.2f} ms "
        f"(bare echo {bare['p50_ms']:.2f} and {bare['p99_ms']:.2f} ms).",
        "",
        f"(c) An idle connection, connected and subscribed: "
        f"{report['c']['bytes'] / 1024:.1f} KiB (target 40).",
        "",
        "(d) Durable publications a second, by publishers that wait for each reply:",
        "",
        "| publishers | per second |",
        "|---:|---:|",
    ]
    for publishers, row in report["d"].items():
        lines.append(f"| {publishers} | {row['publications_per_second']:,.0f} |")
    return lines


def load(report):
    lines = [
        f"{report['machine']}; Python {report['python']}; {report['date']}; "
        f"`{report['command'].split(' --json')[0]}`.",
        "",
        "| | p50 ms | p99 ms | longest ms | connects p50 | p99 | closed as slow |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, title in (
        ("echo", "bare echo"),
        ("alone", "ours, all read"),
        ("beside", "ours, 15 sockets do not"),
        ("echo_again", "bare echo again"),
    ):
        row = report[name]
        ours = ""
        if "connects" in row:
            connects = row["connects"]
            ours = f"{connects['p50_ms']:.1f} | {connects['p99_ms']:.1f} | "
            ours += f"{row['slow_closed']}"
        lines.append(
            f"| {title} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['max_ms']:.1f} | {ours or '| |'} |"
        )
    missed = ", ".join(report["missed"])
    lines += ["", f"Missed: {missed}." if missed else "All targets are met."]
    return lines


def store(report):
    lines = [
        "| how | batch | per second | per commit | of raw SQLite |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["results"]:
        lines.append(
            f"| {row['kind']} | {row['batch']} | {row['rate']:,.0f} | "
            f"{row['per_commit']:.1f} | {row['ratio']:.2f} |"
        )
    return lines


def publishers(report):
    """Return the table of every store, from the report of bench_store."""
    about = report["about"]
    lines = [
        f"{about['processor']}, {about['cores']} cores, load {about['load']:.1f} when "
        f"it began; Python {about['python']}, SQLite {about['sqlite']}, "
        f"{about['loop']}; {about['date']}; `{about['command']}`.",
        "",
        "| store | publishers | per second | p50 ms | p99 ms | a commit | calls each | "
        "refused |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["publishers"]:
        calls = "" if row["calls"] is None else f"{row['calls']:.2f}"
        lines.append(
            f"| {row['store']} | {row['publishers']} | {row['rate']:,.0f} | "
            f"{1000 * row['p50']:,.2f} | {1000 * row['p99']:,.2f} | "
            f"{row['per_commit']:.1f} | {calls} | {row['failed']} |"
        )
    return lines


def refresh(report):
    lines = [
        "| | | p50 ms | p95 ms | p99 ms | a token, µs |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for algorithm in ("HS256", "RS256"):
        row = report[algorithm]
        for name, title in (
            ("rival", "rival"),
            ("ours", "ours"),
            ("rival_again", "rival again"),
        ):
            times, ours = row[name], name == "ours"
            lines.append(
                f"| {algorithm} | {title} | {times['p50_ms']:.1f} | "
                f"{times['p95_ms']:.1f} | {times['p99_ms']:.1f} | "
                f"{row['verify_us'] if ours else 0:.0f} |".replace("| 0 |", "|  |")
            )
    lines += ["", "The aim is 10, 50 and 100 ms."]
    return lines


def connections(report):
    lines = [
        f"{report['machine']}, load {report['load']:.1f} when it began; Python "
        f"{report['python']}; {report['date']}; `bench_connections.py`.",
        "",
        "| idle connections | KiB each | of those more | CPU µs a second each | of "
        "those more |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, row in report["idle"].items():
        lines.append(
            f"| {int(count):,} | {row['bytes'] / 1024:.1f} | "
            f"{row['bytes_more'] / 1024:.1f} | {row['cpu_us']:.2f} | "
            f"{row['cpu_us_more']:.2f} |"
        )
    lines += ["", "| connects | CPU µs each | a second |", "|---|---:|---:|"]
    for name, row in report["connects"].items():
        title = f"{name} {row['version']}".strip()
        lines.append(f"| {title} | {row['cpu_us']:.0f} | {row['per_second']:,.0f} |")
    lines += [
        "",
        "| 100 refreshes | p50 ms | p95 ms | p99 ms |",
        "|---|---:|---:|---:|",
    ]
    for name, row in report["refreshes"].items():
        lines.append(
            f"| {name.replace('_', ' ')} | {row['p50_ms']:.1f} | "
            f"{row['p95_ms']:.1f} | {row['p99_ms']:.1f} |"
        )
    lines.append("")
    for name, target in report["targets"].items():
        met = "met" if target["met"] else "**missed**"
        lines.append(
            f"* {name}: {target['figure']:.2f}, target {target['target']:g}, {met}."
        )
    return lines


def protobuf(report):
    lines = ["| | JSON µs | protobuf µs |", "|---|---:|---:|"]
    for name, row in report["codecs"].items():
        lines.append(f"| {name} | {row['json']:.2f} | {row['protobuf']:.2f} |")
    used = report["fan_out"]["cpu_us"]
    return [
        *lines,
        "",
        "One publication to 1,000 subscribers, CPU µs a delivery: "
        f"JSON {used['json']:.1f}, protobuf {used['protobuf']:.1f}, "
        f"JSON again {used['json again']:.1f}; ratio {report['fan_out']['ratio']:.2f}.",
    ]


def delta(report):
    lines = [
        f"{report['machine']}; Python {report['python']}; {report['date']}; "
        f"`{report['command'].split(' --json')[0]}`, 1 to {report['words']:,} words.",
        "",
        "| subscribers, and how | bytes to each | CPU µs a publication |",
        "|---|---:|---:|",
    ]
    for name, row in report["server"].items():
        lines.append(f"| {name} | {row['bytes']:,.0f} | {row['cpu_us']:,.0f} |")
    lines += [
        "",
        "| text of | bytes | delta, bytes | delta, µs | its push, µs | in full, µs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in report["functions"].items():
        times = (f"{row[key]:.1f}" for key in ("delta_us", "push_us", "full_push_us"))
        lines.append(
            f"| {name} | {row['text_bytes']:,} | {row['delta_bytes']} | "
            f"{' | '.join(times)} |"
        )
    return lines


def peers(report):
    rows, works = report["rows"], ("echo", "paced", "fan-out", "backlog")
    lines = [
        f"{report['machine']}, load {report['load']:.1f} at the end; Python "
        f"{report['python']}; {report['date']}; "
        f"`{report['command'].split(' --json')[0]}`.",
        "",
        "| CPU µs a message | version | echo | paced | p50 ms | fan-out | backlog |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        times = [f"{row[work]['cpu_us']:.1f}" for work in works]
        times.insert(2, f"{row['paced']['p50_ms']:.1f}")
        lines.append(
            f"| {name} | {report['versions_of'][name]} | {' | '.join(times)} |"
        )
    for name, reason in report["left_out"].items():
        lines.append(f"| {name} | left out: {reason} | | | | | |")
    lines += [
        "",
        "What was reached, messages a second, and beside it the ceiling of the load "
        "generator, from its own CPU for each of these messages:",
        "",
        "| | echo | | fan-out | | backlog | |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        rates = (
            f"{row[work]['per_second']:,.0f} | {1e6 / row[work]['generator_us']:,.0f}"
            for work in ("echo", "fan-out", "backlog")
        )
        lines.append(f"| {name} | {' | '.join(rates)} |")
    lines.append("")
    for name, target in report["targets"].items():
        met = "met" if target["met"] else "**missed**"
        lines.append(
            f"* {name}: {target['value']:,.2f}, target {target['wanted']:,}, {met}."
        )
    return lines


def plot_peers(report):
    """Write a bar chart of each kind of work, the least first."""
    for work in ("echo", "fan-out", "backlog"):
        rows = sorted(
            (row[work]["cpu_us"], name) for name, row in report["rows"].items()
        )
        title = f"{work}: CPU µs of the server a message (shorter is better)"
        bars(
            title,
            [
                (name, value, f"{value:.1f}", name.startswith("ours"))
                for value, name in rows
            ],
            DOCS / "benchmarks" / f"peers-{work}.svg",
        )


def budget(report):
    lines = [
        "| stage | compiled µs | pure µs |",
        "|---|---:|---:|",
    ]
    compiled, again, pure = (
        report[name] for name in ("compiled", "compiled_again", "pure")
    )
    for name in compiled:
        best = min(compiled[name], again[name])
        lines.append(f"| {name} | {best:.2f} | {pure[name]:.2f} |")
    lines += [
        "",
        f"The extensions make the server {report['end_to_end']:.2f} times as fast.",
    ]
    return lines


def bars(title, rows, path):
    """Write a bar chart; a row: name, value, the value as text, whether it is ours."""
    widest = max(value for _, value, _, _ in rows)
    height = 28 * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<text x="8" y="20">{title}</text>',
    ]
    for number, (name, value, text, mine) in enumerate(rows):
        y = 34 + 28 * number
        width = max(1, 380 * value / widest)
        colour = "#2a7f62" if mine else "#9aa5b1"
        parts.append(f'<text x="8" y="{y + 15}">{name}</text>')
        parts.append(
            f'<rect x="170" y="{y}" width="{width:.0f}" height="20" fill="{colour}"/>'
        )
        parts.append(f'<text x="{178 + width:.0f}" y="{y + 15}">{text}</text>')
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n")


def runs(report):
    lines = [
        f"{report['machine']}; Python {report['python']}; {report['date']}; "
        f"`{report['command'].split(' --json')[0]}`.",
        "",
        "| runs at once, deltas a write | | events a second | CPU µs an event |",
        "|---|---|---:|---:|",
    ]
    for name, rows in report["runs"].items():
        for kind, row in rows.items():
            lines.append(
                f"| {name} | {kind} | {row['events_per_second']:,.0f} | "
                f"{row['cpu_us']:.1f} |"
            )
    lines += ["", "| time to the first delta | p50 ms | p99 ms |", "|---|---:|---:|"]
    for kind, row in report["first"].items():
        lines.append(f"| {kind} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} |")
    first = report["first"]
    added = {
        key: first["relayed"][key]
        - (first["direct"][key] + first["direct again"][key]) / 2
        for key in ("p50_ms", "p99_ms")
    }
    size = report["idle"]["bytes"] / 1024
    return [
        *lines,
        "",
        f"The relay adds {added['p50_ms']:.1f} ms at the median and "
        f"{added['p99_ms']:.1f} ms at the 99th percentile. One of "
        f"{report['idle']['viewers']:,} idle viewers takes {size:.1f} KiB.",
    ]


def plot(report, payload, path):
    """Write a bar chart of the minimum times on one payload."""
    bars(
        f"{report['name']}, {payload}: nanoseconds, least of many (shorter is better)",
        [
            (name, row["min_ns"], f"{row['min_ns']:,.0f}", number == 0)
            for number, (name, row) in enumerate(report["payloads"][payload].items())
        ],
        path,
    )


def scaling(report):
    heard, idle, fan = report["a"], report["b"], report["c"]
    lines = [
        f"{report['machine']}; Python {report['python']}; {report['date']}; "
        f"`{report['command'].split(' --json')[0]}`.",
        "",
        f"| publish to delivery at {report['rate']} a second | p50 ms | p99 ms |",
        "|---|---:|---:|",
    ]
    for key, title in (
        ("same", "to a subscriber of the same process"),
        ("other", "to one of another process, by `data_version`"),
    ):
        row = heard[key]
        lines.append(f"| {title} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} |")
    lines += [
        "",
        "A process without clients, CPU ms a second: "
        f"{idle['alone']['cpu_ms']:.1f} with the file for itself, "
        f"{idle['shared']['cpu_ms']:.1f} with a shared one.",
        "",
        "| 1,000 subscribers | CPU µs a delivery | deliveries a second | spread |",
        "|---|---:|---:|---|",
    ]
    for workers, row in fan.items():
        title = "one process" if workers == "1" else f"{workers} workers"
        lines.append(
            f"| {title} | {row['cpu_us']:.1f} | {row['per_second']:,.0f} | "
            f"{' and '.join(map(str, row['spread']))} |"
        )
    return lines


TABLES = {
    "codec": contestants,
    "protobuf": protobuf,
    "delta": delta,
    "serialize": contestants,
    "ping": contestants,
    "backoff": contestants,
    "store": store,
    "budget": budget,
    "server": server,
    "load": load,
    "refresh": refresh,
    "scaling": scaling,
    "runs": runs,
    CONNECTIONS: connections,
    PEERS: peers,
}


def main(arguments):
    names = arguments.only or SCRIPTS
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(arguments.source or temporary)
        if not arguments.source:
            collect(directory, names)
        reports = {
            name: json.loads((directory / f"{name}.json").read_text()) for name in names
        }
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    tables = {name: TABLES[name](reports[name]) for name in names}
    if "store" in names:
        tables["publishers"] = publishers(reports["store"])
    if not arguments.only:
        tables["machine"] = machine()
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"
    page.write_text(text)
    (DOCS / "benchmarks").mkdir(exist_ok=True)
    for name in {"codec", "serialize", "ping", "backoff"}.intersection(names):
        for payload in reports[name]["payloads"]:
            slug = payload.replace(" ", "-").lower()
            plot(reports[name], payload, DOCS / "benchmarks" / f"{name}-{slug}.svg")
    if PEERS in names:
        plot_peers(reports[PEERS])


def machine():
    here = describe()
    versions = ", ".join(f"{name} {found}" for name, found in here["versions"].items())
    return [
        f"{here['machine']}; Python {here['python']}; {versions}; {here['date']}; "
        "`make bench`."
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", metavar="DIRECTORY")
    parser.add_argument("--only", nargs="+", choices=list(TABLES), metavar="NAME")
    main(parser.parse_args())
