"""A table as LaTeX (booktabs): compiles on its own with pdflatex, and drops into a paper with ``\\input``."""

from __future__ import annotations

import re
from textwrap import wrap

from jinja2 import Environment, StrictUndefined

from nora.collate.document import Block, Document, Entry

# A class defines \footnotesize, so a file that is \input into a paper skips the preamble and the end of the document.
# A paper needs booktabs, longtable and graphicx. Only a table wider than the page is shrunk. In a paper of two columns
# one of many columns spans both, and one of several pages stands on pages of its own. Its blocks share one number.
_LATEX = r"""% {{ document.name }}, made by `nora collate`: do not edit.
\ifdefined\footnotesize\else
\def\noraalone{}
\documentclass[10pt]{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,longtable,graphicx}
\begin{document}
{%- if document.title | number %}
\setcounter{table}{ {{- document.title | number - 1 -}} }
{%- endif %}
\fi
{%- for block in document.blocks %}
{%- set caption = (document.title | unnumbered ~ (": " ~ block.heading if block.heading else "")) | tex %}
{%- set banner = "\\textbf{" ~ (document.banner | tex) ~ "}" if document.banner else "" %}
{%- if not loop.first %}
\addtocounter{table}{-1}
{%- endif %}
{%- if block | long %}
\makeatletter\if@twocolumn\onecolumn\def\noratwo{}\fi\makeatother
{\footnotesize\setlength{\tabcolsep}{3pt}
\begin{longtable}{ {{- block | columns -}} }
\caption{ {{- caption }}. {{ banner -}} }\\
\toprule
{% for column in block.columns %} & {{ column | heading }}{% endfor %} \\
\midrule
\endfirsthead
\toprule
{% for column in block.columns %} & {{ column | heading }}{% endfor %} \\
\midrule
\endhead
{{ block | body }}
\bottomrule
\end{longtable}
}
\ifdefined\noratwo\let\noratwo\undefined\twocolumn\fi
{%- else %}
\begin{ {{- block | float -}} }[htbp]
\centering
\caption{ {{- caption }}. {{ banner -}} }
\setbox0=\hbox{\begin{tabular}{ {{- block | columns -}} }
\toprule
{% for column in block.columns %} & {{ column | heading }}{% endfor %} \\
\midrule
{{ block | body }}
\bottomrule
\end{tabular}}
\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\box0\fi
{%- if loop.last %}{{ notes }}{% endif %}
\end{ {{- block | float -}} }
{%- endif %}
{%- if loop.last and block | long %}{{ notes }}{% endif %}
{%- endfor %}
\ifdefined\noraalone\expandafter\enddocument\fi
"""

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "*": r"$\ast$",
    "±": r"$\pm$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "η": r"$\eta$",
    "κ": r"$\kappa$",
    "λ": r"$\lambda$",
    "ξ": r"$\xi$",
    "ρ": r"$\rho$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "Ω": r"$\Omega$",
    "−": r"$-$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "≈": r"$\approx$",
    "→": r"$\to$",
    "·": r"$\cdot$",
    "×": r"$\times$",
    "‡": r"$^\ddagger$",
    "†": r"$^\dagger$",
    "§": r"\S{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "’": "'",
    "ö": r"\"o",
    "ä": r"\"a",
    "ü": r"\"u",
    "é": r"\'e",
    "²": r"$^2$",
    "³": r"$^3$",
    "⁴": r"$^4$",
    "⁶": r"$^6$",
    "⁸": r"$^8$",
    "⁻": r"$^-$",
    "¹": r"$^1$",
    "₁": r"$_1$",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}
_LONG_TEXT, _LONG_TABLE = 48, 44  # characters that need a paragraph column, lines that need more than one page


_HEADING_WIDTH = 14
_NARROW = 3  # columns that fit half a page
_NUMBERED = re.compile(r"Table (\d+) – ")


def escape_latex(text: str) -> str:
    """``text`` as LaTeX prints it; ValueError for a character this file has no spelling for."""
    spelt = "".join(_CHARACTERS.get(character, character) for character in text)
    if not spelt.isascii():
        unknown = "".join(sorted({character for character in spelt if not character.isascii()}))
        raise ValueError(f"given {unknown!r} in {text!r}, required ASCII or a character nora.collate.latex spells")
    return spelt


def _entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    text = f"\\textbf{{{text}}}" if entry.best else text
    if not entry.detail:
        return text
    return f"\\begin{{tabular}}{{@{{}}c@{{}}}}{text}\\\\[-4pt]{{\\tiny {escape_latex(entry.detail)}}}\\end{{tabular}}"


def _heading(text: str) -> str:
    """A column's name, broken into short lines: the numbers below it set the width."""
    lines = [escape_latex(line) for line in wrap(text, _HEADING_WIDTH)]
    return lines[0] if len(lines) == 1 else "\\shortstack{" + "\\\\".join(lines) + "}"


def _number(title: str) -> int | None:
    """The paper's number of a table: LaTeX writes it itself."""
    found = _NUMBERED.match(title)
    return int(found[1]) if found else None


def _unnumbered(title: str) -> str:
    return _NUMBERED.sub("", title)


def _body(block: Block) -> str:
    lines = []
    for line in block.lines:
        rule = "\\midrule\n" if line.rule_above else ""
        lines.append(rule + " & ".join([escape_latex(line.label), *map(_entry, line.entries)]) + r" \\")
    return "\n".join(lines)


def _widest(block: Block) -> list[int]:
    return [max((len(line.entries[i].text) for line in block.lines), default=0) for i in range(len(block.columns))]


def _long(block: Block) -> bool:
    return len(block.lines) > _LONG_TABLE or any(width > _LONG_TEXT for width in _widest(block))


def _float(block: Block) -> str:
    """The starred one spans both columns of a paper that has two; elsewhere they are the same."""
    return "table*" if len(block.columns) > _NARROW else "table"


def _columns(block: Block) -> str:
    """Centred columns; those with long text are paragraphs that share the rest of the line."""
    widths = _widest(block)
    long = sum(width > _LONG_TEXT for width in widths)
    kinds = [f"p{{{0.66 / long:.2f}\\linewidth}}" if width > _LONG_TEXT else "c" for width in widths]
    return "l" + "".join(kinds)


def to_latex(document: Document) -> str:
    """Every block of the table, its banner in each caption, its notes below the last."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {
        "tex": escape_latex,
        "heading": _heading,
        "number": _number,
        "unnumbered": _unnumbered,
        "body": _body,
        "long": _long,
        "float": _float,
        "columns": _columns,
    }
    notes = "".join(f"\n\\par{{\\footnotesize\\raggedright {escape_latex(note)}\\par}}" for note in document.notes)
    return environment.from_string(_LATEX).render(document=document, notes=notes)
