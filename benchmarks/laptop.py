"""Time to an answer on a laptop's CPU: the four commands as a user types them, beside another checkout in one run.

    python benchmarks/laptop.py --photo cat.jpg                            # this checkout alone
    python benchmarks/laptop.py --photo cat.jpg --before ../older --repeat 3
    python benchmarks/laptop.py --only demo,explain --before ../older

Each command runs in a process of its own, by turns with the other checkout's, and the medians are compared. Seconds of
wall time count what else the machine does, and seconds of CPU hardly do. Without a photograph `recognise` is left out.
It needs the extra `imagenet`.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent.parent
PROMPT = "a small plain red circle left of a large striped blue square on a white background"
METHODS = "df-rise-contrast,df-cam,words,relevance"
COMMANDS = {
    "demo": ["demo"],
    "explain": ["explain", PROMPT, "--guidance", "3", "--methods", METHODS, "--at", "3,6,15,24"],
    "compare": ["compare", PROMPT, "--guidance", "3", "--schedules", "uniform,early,late", "--shift", "60"],
    "recognise": ["recognise"],
}


class Seconds(NamedTuple):
    """Wall time and CPU time of one process, in seconds."""

    wall: float
    cpu: float


def run(checkout: Path, words: list[str]) -> Seconds:
    """Run a command of a checkout in a process of its own; raises `CalledProcessError` if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "denoscope", *words, "--out", f"{folder}/out"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def medians(runs: list[Seconds]) -> Seconds:
    return Seconds(median(each.wall for each in runs), median(each.cpu for each in runs))


def lines(checkouts: dict[str, Path], commands: dict[str, list[str]], repeat: int) -> Iterator[str]:
    """Yield a line for each command: seconds of every checkout, and the last one's share of the first one's."""
    yield "".join([f"{'command':12}", *(f"{name + ' wall':>13}{'cpu':>9}" for name in checkouts), "   now ÷ before"])
    for name, words in commands.items():
        runs: dict[str, list[Seconds]] = {each: [] for each in checkouts}
        for _ in range(repeat):
            for each, checkout in checkouts.items():
                runs[each].append(run(checkout, words))
        found = [medians(each) for each in runs.values()]
        first, last = found[0], found[-1]
        share = f"   {last.wall / first.wall:.2f} wall, {last.cpu / first.cpu:.2f} cpu" if len(found) > 1 else ""
        yield "".join([f"{name:12}", *(f"{each.wall:13.1f}{each.cpu:9.1f}" for each in found), share])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, run by turns with this one")
    parser.add_argument("--photo", type=Path, help="the photograph of recognise")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each command")
    parser.add_argument("--only", default=",".join(COMMANDS), help="commands, as in demo,explain")
    chosen = parser.parse_args()
    unknown = set(chosen.only.split(",")) - set(COMMANDS)
    if unknown:
        parser.error(f"there is no command {', '.join(sorted(unknown))}; give some of {', '.join(COMMANDS)}")
    commands = {name: COMMANDS[name] for name in chosen.only.split(",")}
    if "recognise" in commands and chosen.photo is None:
        print("Without --photo, recognise is left out.")
        del commands["recognise"]
    elif "recognise" in commands:
        commands["recognise"] = ["recognise", str(chosen.photo.resolve())]
    checkouts = {} if chosen.before is None else {"before": chosen.before.resolve()}
    for line in lines({**checkouts, "now": HERE}, commands, chosen.repeat):
        print(line, flush=True)


if __name__ == "__main__":
    main()
