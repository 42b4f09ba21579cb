"""Hostile texts through the programs that people open our files with: a browser, TeX, a spreadsheet. A part of ``nora
bench chaos``."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nora.reporting.document import Block, Document, Entry, Line, csv_text, to_csv
from nora.reporting.latex import to_latex
from nora.reporting.report import Measurement, Section, render_report
from nora.store.runs import Store
from nora.store.states import Snapshot, take_snapshot
from nora.tables.target import load_target

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def document(text: str) -> Document:
    """A table with it in every place."""
    entries = (Entry(text, detail=text), Entry(text, best=True), Entry(text, grey=True))
    return Document(
        name="hostile", title=text, banner=text, blocks=(Block(text, (text,) * 3, (Line(text, entries),)),),
        notes=(text,), csv_header=(text, "second"), csv_rows=((text, 1), (1, text)),
    )  # fmt: skip


def why_not() -> str | None:
    """The programs that are not here."""
    programs = {"chromium": CHROMIUM, **{name: shutil.which(name) for name in ("pdflatex", "pdftotext", "ssconvert")}}
    missing = [name for name, path in programs.items() if path is None]
    return f"{', '.join(missing)} not installed" if missing else None


def letters(text: str) -> str:
    """What is read of it whatever the notation: letters and digits."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if c.isascii() and c.isalnum())


_DO_EVERYTHING = """async () => {
  for (const node of document.querySelectorAll("body, body *")) {
    for (const name of ["mouseover", "focus", "load", "error", "animationstart", "toggle"])
      node.dispatchEvent(new Event(name));
    if (node.focus) node.focus();
    if (node.click && (node.tagName !== "A" || !(node.getAttribute("href") || "").match(/^https?:/))) node.click();
  }
  await new Promise(done => setTimeout(done, 20));
  const tags = {}, handlers = [];
  for (const node of document.querySelectorAll("*")) {
    tags[node.tagName] = (tags[node.tagName] || 0) + 1;
    for (const one of node.attributes)
      if (one.name.startsWith("on") ||
        /^(href|src|action|xlink:href|data)$/.test(one.name) && /^\\s*(javascript:|data:t)/i.test(one.value))
        handlers.push(one.name);
  }
  return [tags, handlers, document.body.textContent, window.ran === undefined, location.href];
}"""
"""Everything a reader could touch is touched; then what the page has become."""


def _page(text: str, snapshot: Snapshot, cells: Sequence[Any]) -> str:
    section = Section(document(text), tuple(cell.id for cell in cells))
    return render_report([section], cells, snapshot, [Measurement(text, text, text)])


def in_a_browser(checkout: Path, folder: Path, texts: Sequence[str], with_text: Any) -> list[list[str]]:
    """Per text, what its report did in Chromium that a harmless one's does not: a dialog, a script, a request, another
    element, another address; or that it does not show."""
    from playwright import sync_api as playwright

    cells = [cell for cell in load_target(checkout, "table2").cells({}) if cell.id][:2]
    committed = take_snapshot(Store(checkout / "results"))
    known = [committed[cell.id] for cell in cells if cell.id in committed]
    found: list[list[str]] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expected: dict[str, int] = {}
        for number, text in enumerate(["x", *texts]):
            store = Store(folder / str(number))
            for record in known:
                path = store.record_path(record.kind, record.id)
                path.parent.mkdir(parents=True)
                path.write_text(replace(record, run=with_text(record.run, text)).to_json(), encoding="utf-8")
            file = folder / f"{number}.html"
            file.write_text(_page(text, take_snapshot(store), cells), encoding="utf-8")
            page = browser.new_page()
            did: list[str] = []

            def dialog(box: Any, did: list[str] = did) -> None:
                did.append(f"dialog {box.message!r:.40}")
                box.dismiss()

            def request(one: Any, did: list[str] = did, own: str = file.as_uri()) -> None:
                if one.url.partition("#")[0] != own and not one.url.startswith("data:image/"):
                    did.append(f"request {one.url:.60}")

            page.on("dialog", dialog)
            page.on("request", request)
            page.on("popup", lambda other, did=did: did.append("another window"))
            page.on("pageerror", lambda error, did=did: did.append(f"error {error!s:.60}"))
            page.add_init_script("window.alert = () => { window.ran = true; }")
            page.goto(file.as_uri())
            try:
                tags, handlers, shown, quiet, address = page.evaluate(_DO_EVERYTHING)
            except playwright.Error as error:  # it went elsewhere meanwhile
                found.append([*did, f"{error!s:.80}"])
                continue
            finally:
                page.close()
            expected = expected or tags
            did += [f"<{t}> {expected.get(t, 0)} → {tags.get(t, 0)}" for t in sorted({*tags, *expected} - _OF_NOTATION)
                    if tags.get(t) != expected.get(t)]  # fmt: skip
            did += [f"handler {name}" for name in handlers]
            did += [] if quiet else ["a script ran"]
            did += [] if address.partition("#")[0] == file.as_uri() else [f"went to {address:.60}"]
            did += [] if letters(text) in letters(shown) else ["not shown"]
            found.append(did)
        browser.close()
    return found[1:]


_OF_NOTATION = {"SUB", "SUP", "CODE"}
"""What the light notation of texts makes of _, ^ and `."""


def in_tex(folder: Path, texts: Sequence[str]) -> list[list[str]]:
    """Per text, what its table did in pdflatex without a shell: no PDF, a file of somebody else's read or one written;
    or that it cannot be read in the PDF."""
    found = []
    for number, text in enumerate(texts):
        own = folder / f"tex-{number}"
        own.mkdir()
        (own / "t.tex").write_text(to_latex(document(text)), encoding="utf-8")
        done = subprocess.run(
            ["pdflatex", "-no-shell-escape", "-recorder", "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
            cwd=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        did = []
        if done.returncode:
            did += [f"no PDF: {' '.join(line for line in done.stdout.splitlines() if line.startswith('!')):.100}"]
        else:
            words = subprocess.run(["pdftotext", "t.pdf", "-"], cwd=own, capture_output=True, text=True, check=True)
            pieces = map(letters, re.findall("[ -~]+", text))  # what is no ASCII stands as its number
            did += [] if all(piece in letters(words.stdout) for piece in pieces) else ["not readable"]
        for line in (own / "t.fls").read_text(errors="replace").splitlines():
            what, _, path = line.partition(" ")
            there = (own / path).resolve()
            if what == "OUTPUT" and there not in {own / f"t.{end}" for end in ("log", "aux", "pdf")}:
                did.append(f"wrote {path}")
            if what == "INPUT" and there.parent != own and "tex" not in path:
                did.append(f"read {path}")
        if others := {p.name for p in own.iterdir()} - {f"t.{end}" for end in ("tex", "log", "aux", "pdf", "fls")}:
            did.append(f"made {sorted(others)}")
        found.append(did)
        shutil.rmtree(own)
    return found


def _formulas(folder: Path, content: str) -> tuple[list[str], list[str]]:
    """Gnumeric's cells of a CSV: those that it takes for a formula, and all."""
    source, sheet = folder / "t.csv", folder / "t.gnumeric"
    source.write_text(content, encoding="utf-8", newline="")
    subprocess.run(
        ["ssconvert", "-I", "Gnumeric_stf:stf_csvtab", "--import-encoding=UTF-8", "-T", "Gnumeric_XmlIO:sax:0",
         str(source), str(sheet)],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    data = sheet.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    cells = re.findall(r"<gnm:Cell ([^>]*?)(?:/>|>(.*?)</gnm:Cell>)", data.decode(), re.DOTALL)
    return [text for how, text in cells if "ValueType" not in how], [text for _, text in cells]


def in_a_spreadsheet(folder: Path, texts: Sequence[str]) -> list[list[str]]:
    """Per text, what of its CSV Gnumeric takes for a formula, or does not hold."""
    found = []
    assert _formulas(folder, "=1+1,x\n")[0], "an unguarded formula is one here"
    for text in texts:
        formulas, cells = _formulas(folder, to_csv(document(text)) + csv_text(["second", "again"], [[text, text]]))
        did = [f"formula {formula:.40}" for formula in formulas]
        did += [] if sum(letters(text) in letters(_unescaped(cell)) for cell in cells) >= 3 else ["not held"]
        found.append(did)
    return found


def _unescaped(cell: str) -> str:
    from html import unescape

    return unescape(cell)


def sinks(checkout: Path, folder: Path, texts: Sequence[str], with_text: Any) -> dict[str, Any]:
    """Each text in every place of a table, through each program."""
    folder.mkdir()
    by: dict[str, dict[str, int]] = {}
    wrong = []
    for name, found in {
        "browser": in_a_browser(checkout, folder, texts, with_text),
        "TeX": in_tex(folder, texts),
        "spreadsheet": in_a_spreadsheet(folder, texts),
    }.items():
        by[name] = {"trials": len(found), "passed": sum(not did for did in found)}
        wrong += [f"{name}, {text!r}: {what}" for text, did in zip(texts, found, strict=True) for what in did[:3]]
        print(name, by[name], file=sys.stderr, flush=True)
    trials, passed = (sum(one[key] for one in by.values()) for key in ("trials", "passed"))
    return {"trials": trials, "passed": passed, "payloads": len(texts), "wrong": wrong[:40], "by": by}
