"""The table of the small pipelines: as Markdown, as JSON, in README's words, and its summary."""

import argparse
import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from families_questions import QUESTIONS, Cell

from denoscope.errors import one_line
from denoscope.files.whole import whole_folder

FILES = {"table.md", "table.json"}
README = {
    "sd-text": "Stable Diffusion",
    "sd-inpaint": "Stable Diffusion, inpainting",
    "sd-controlnet": "Stable Diffusion, ControlNet",
    "sdxl-text": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "flux-kontext": "Flux Kontext",
    "flux-fill": "Flux Fill",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
    "pixart-sigma": "PixArt-Σ",
    "sana": "Sana",
    "lumina-2": "Lumina 2",
    "hunyuan-dit": "HunyuanDiT",
    "kandinsky-2": "Kandinsky 2.2",
    "pixel-deepfloyd": "DeepFloyd IF",
    "cascade": "Stable Cascade",
    "dit": "DiT",
    "video-animatediff": "AnimateDiff",
    "video-stable-video": "Stable Video Diffusion",
    "wan": "Wan 2.1",
    "wan-2.2": "Wan 2.2",
    "cogvideo": "CogVideoX",
    "ltx": "LTX-Video",
    "hunyuan-video": "HunyuanVideo",
    "mochi": "Mochi",
    "cosmos": "Cosmos",
}
"""The families of README's table, and the names that users know them by."""
README_COLUMNS = {
    "recorded": "recorded",
    "of a later step": "engine",
    "DF-RISE": "DF-RISE",
    "Occlusion": "Occlusion",
    "Integrated Gradients": "Integrated Gradients",
    "DF-CAM": "DF-CAM",
    "words": "words",
    "concepts": "concepts",
    "relevance": "relevance",
}
"""The columns of README's table, by the questions that they answer."""


@dataclass(frozen=True)
class Row:
    """The answers of one family, by their questions."""

    name: str
    pipeline: str
    layouts: tuple[str, ...]
    cells: Mapping[str, Cell]
    seconds: float

    @property
    def fails(self) -> bool:
        """True if the table must not have an answer of this row."""
        return any(cell.fails for cell in self.cells.values())


def one_row(row: Row) -> str:
    """Return a row as one line, for the terminal."""
    answers = " | ".join(f"{question} {cell.text}" for question, cell in row.cells.items())
    return f"{row.name} | {answers} | {row.seconds:.0f} s"


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def markdown(rows: Sequence[Row]) -> str:
    """Return the whole table."""
    questions = list(QUESTIONS)
    head = ["family", "pipeline", "stands for", *questions, "seconds"]
    return lines_of(
        head,
        [
            [
                row.name,
                row.pipeline,
                ", ".join(row.layouts),
                *[row.cells[question].text if question in row.cells else "" for question in questions],
                f"{row.seconds:.1f}",
            ]
            for row in rows
        ],
    )


def plain(rows: Sequence[Row]) -> str:
    """Return the rows as JSON."""
    return json.dumps({row.name: dataclasses.asdict(row) for row in rows}, indent=1, ensure_ascii=False)


def of_users(rows: Sequence[Row]) -> str:
    """Return README's table of those of its families that are among the rows."""
    listed = {row.name: row for row in rows if row.name in README}
    cells = [
        [README[name], *[_for_users(listed[name].cells[q]) for q in README_COLUMNS]]
        for name in README
        if name in listed
    ]
    return lines_of(["pipeline", *README_COLUMNS.values()], cells)


def _for_users(cell: Cell) -> str:
    """Return an answer in README's words."""
    return cell.text if cell.kind == "answered" else {"refused": "refused", "none": "–"}.get(cell.kind, cell.text)


# The summary.


def summary(rows: Sequence[Row]) -> str:
    """Return the counts of each column, everything that fails, and the refusals, grouped by their messages."""
    kinds = ("answered", "refused", "none", "wrong", "raw")
    questions = [question for question in QUESTIONS if any(question in row.cells for row in rows)]
    counts = [[question, *[str(_count(rows, question, kind)) for kind in kinds]] for question in questions]
    parts = [f"{len(rows)} families.\n", lines_of(["question", *kinds], counts), engines(rows)]
    fails = [f"- {row.name}, {q}: {cell.message}" for row in rows for q, cell in row.cells.items() if cell.fails]
    parts += ["Wrong, or no exception of Denoscope's own:\n", "\n".join(fails or ["- nothing"]) + "\n", refusals(rows)]
    return "\n".join(parts)


def _count(rows: Sequence[Row], question: str, kind: str) -> int:
    return sum(question in row.cells and row.cells[question].kind == kind for row in rows)


def engines(rows: Sequence[Row]) -> str:
    """Return how often each engine answers."""
    lines = []
    for question in ("engine of step 0", "of a later step", "decoded by"):
        cells = [row.cells[question] for row in rows if question in row.cells]
        counts = Counter(cell.text for cell in cells if cell.kind == "answered")
        lines.append(f"- {question}: {', '.join(f'{number} {text}' for text, number in counts.most_common())}\n")
    return "".join(lines)


def refusals(rows: Sequence[Row]) -> str:
    """Return the refusals by their messages, whose numbers and names of classes do not count."""
    groups: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in rows:
        for question, cell in row.cells.items():
            if cell.kind == "refused":
                groups[_without_details(cell.message)].append((row.name, question, cell.message))
    lines = ["Refused:\n"]
    for group in sorted(groups.values(), key=len, reverse=True):
        families: dict[str, list[str]] = defaultdict(list)
        for name, question, _ in group:
            families[name].append(question)
        where = "; ".join(f"{name} ({', '.join(questions)})" for name, questions in families.items())
        lines.append(f"- {one_line(group[0][2], 500)}\n  {where}")
    return "\n".join(lines) + "\n"


def _without_details(message: str) -> str:
    return re.sub(r"[\d.]+|\b[A-Z]\w*[A-Z]\w*\b|\"[^\"]*\"", "#", message)[:80]


# Files.


def check_place(folder: Path, parser: argparse.ArgumentParser) -> Path:
    """Return the absolute path of a folder that may be written; end with an error if it holds anything else."""
    place = folder.expanduser().resolve()
    if place.exists() and (not place.is_dir() or {entry.name for entry in place.iterdir()} - FILES):
        parser.error(f'--out "{folder}" holds other files than a table of families; give another folder')
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def write(rows: Sequence[Row], place: Path) -> None:
    """Write the table and its summary, whole or not at all."""
    with whole_folder(place) as folder:
        (folder / "table.md").write_text(f"{markdown(rows)}\n{summary(rows)}", encoding="utf-8")
        (folder / "table.json").write_text(plain(rows), encoding="utf-8")
