"""A table as LaTeX (booktabs): compiles on its own with pdflatex, and drops into a paper with ``\\input``."""

from __future__ import annotations

import re
from math import ceil
from textwrap import wrap

from jinja2 import Environment, StrictUndefined

from nora.reporting.document import Block, Document, Entry
from nora.reporting.labels import rendered

# A class defines \footnotesize, so a file that is \input into a paper skips the preamble and the end of the document.
# A paper needs booktabs, longtable and graphicx. Only a table wider than the page is shrunk. In a paper of two columns
# one of many columns spans both, and one of several pages stands on pages of its own. Its blocks share one number.
_LATEX = r"""% {{ document.name }}, made by `nora collate`: do not edit.
\ifdefined\footnotesize\else
\def\noraalone{}
\documentclass[10pt]{article}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,longtable,graphicx,xcolor}
{%- if document.title | number %}
\usepackage[skip=4pt]{caption}
\setcounter{table}{ {{- document.title | number - 1 -}} }
{%- else %}
\usepackage[skip=4pt,labelformat=empty]{caption}
{%- endif %}
\begin{document}
\fi
{%- for block in document.blocks %}
{%- set caption = (document.title | unnumbered ~ (". " ~ block.heading if block.heading else "")) | tex %}
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
{% for heading in block | headings %} & {{ heading }}{% endfor %} \\
\midrule
\endfirsthead
\toprule
{% for heading in block | headings %} & {{ heading }}{% endfor %} \\
\midrule
\endhead
{{ block | body }}
\bottomrule
\end{longtable}
}
\ifdefined\noratwo\let\noratwo\undefined\twocolumn\fi
{%- else %}
\begin{ {{- block | float -}} }[!htbp]
\centering
\caption{ {{- caption }}. {{ banner -}} }
{{ block | size -}}
\setbox0=\hbox{\begin{tabular}{ {{- block | columns -}} }
\toprule
{% for heading in block | headings %} & {{ heading }}{% endfor %} \\
\midrule
{{ block | body }}
\bottomrule
\end{tabular}}
\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\box0}\else\leavevmode\box0\fi
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
    "τ": r"$\tau$",
    "ζ": r"$\zeta$",
    "θ": r"$\theta$",
    "Θ": r"$\Theta$",
    "Σ": r"$\Sigma$",
    "Φ": r"$\Phi$",
    "Ψ": r"$\Psi$",
    "√": r"$\surd$",
    "‖": r"$\|$",
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
    "₂": r"$_2$",
    "\N{NO-BREAK SPACE}": "~",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
}
_LONG_TEXT, _LONG_TABLE = 64, 44  # characters that need a paragraph column, lines that need more than one page
_PARAGRAPH = 40  # characters in a line of a paragraph column

_HEADING_WIDTH = 14
_NARROW, _WIDE = 3, 7  # columns that fit half a page, that fit a page at the size of the text
_NUMBERED = re.compile(r"Table (\d+) – ")


_QUOTED = re.compile(r'"([^"]*)"')
_REMARK = re.compile(r"(.+) (\([A-Za-z ]+\))")
_MINUS = re.compile(r"(?<![\w.)-])-(?=\d)")


def escape_latex(text: str) -> str:
    """``text``, with the light notation of labels.py, as LaTeX prints it; a character that is not spelt here (another
    script, a control character) stands as its number, [U+6F22]: a name of somebody's own must not stop a table."""
    text = _MINUS.sub("−", _QUOTED.sub(r"“\1”", re.sub(r"\s*[\t\n\r]\s*", " ", text)))
    latex = rendered(
        text,
        plain=_characters,
        sub=lambda inner: f"$_{{{_in_mathematics(inner)}}}$",
        sup=lambda inner: f"$^{{{_in_mathematics(inner)}}}$",
        code=lambda inner: f"\\texttt{{{_characters(inner)}}}",
    )
    return f"{{}}{latex}" if latex.startswith("[") else latex  # after the end of a line it would be a length


def _in_mathematics(text: str) -> str:
    """What stands raised or lowered is TeX already, but for its signs."""
    return "".join(c if c in r"_^{}" else _characters(c).strip("$") for c in text)


def _characters(text: str) -> str:
    return "".join(_CHARACTERS.get(c) or (c if " " <= c <= "~" else f"[U+{ord(c):04X}]") for c in text)


def _entry(entry: Entry) -> str:
    text = escape_latex(entry.text)
    text = f"\\textbf{{{text}}}" if entry.best else text
    text = f"\\textcolor{{gray}}{{{text}}}" if entry.grey else text
    if len(entry.text) > _LONG_TEXT:
        return f"\\raggedright {text}"
    return _stacked(text, entry.detail.split(", ", 1), "c") if entry.detail else text


def _heading(text: str) -> str:
    """A column's name, broken into short lines: the numbers below it set the width."""
    lines = [escape_latex(line) for line in wrap(text, _HEADING_WIDTH, break_long_words=False)]
    return lines[0] if len(lines) == 1 else "\\shortstack{" + "\\\\".join(lines) + "}"


def _headings(block: Block) -> list[str]:
    """The columns' names; above a paragraph there is room for a whole line."""
    widths = _widest(block)
    return [escape_latex(c) if w > _LONG_TEXT else _heading(c) for c, w in zip(block.columns, widths, strict=True)]


def _label(text: str) -> str:
    """A row's name; a remark in brackets at its end stands small below it, so that the numbers have the width."""
    found = _REMARK.fullmatch(text)
    return escape_latex(text) if found is None else _stacked(escape_latex(found[1]), [found[2]], "l")


def _stacked(text: str, small: list[str], place: str) -> str:
    # Six points: what stands small beside a number is still read on paper.
    lines = [rf"{{\fontsize{{6}}{{7}}\selectfont {escape_latex(part)}}}" for part in small]
    return rf"\begin{{tabular}}{{@{{}}{place}@{{}}}}" + r"\\[-3pt]".join([text, *lines]) + r"\end{tabular}"


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
        lines.append(rule + " & ".join([_label(line.label), *map(_entry, line.entries)]) + r" \tabularnewline")
    return "\n".join(lines)


def _widest(block: Block) -> list[int]:
    return [max((len(line.entries[i].text) for line in block.lines), default=0) for i in range(len(block.columns))]


def _long(block: Block) -> bool:
    """Whether the block is taller than a page; paragraphs count their lines."""
    heights = (max((ceil(len(e.text) / _PARAGRAPH) for e in line.entries if len(e.text) > _LONG_TEXT), default=1)
               for line in block.lines)  # fmt: skip
    return sum(heights) > _LONG_TABLE


def _size(block: Block) -> str:
    """Smaller type for a block of many columns, rather than shrinking all of it, small print too."""
    return "\\footnotesize\\setlength{\\tabcolsep}{3pt}%\n" if len(block.columns) > _WIDE else ""


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
        "headings": _headings,
        "number": _number,
        "unnumbered": _unnumbered,
        "body": _body,
        "long": _long,
        "float": _float,
        "size": _size,
        "columns": _columns,
    }
    texts = "".join(f"\n{escape_latex(note)}\\par" for note in document.notes)
    notes = f"\n\\par\\smallskip{{\\footnotesize\\raggedright{texts}}}" if texts else ""
    return environment.from_string(_LATEX).render(document=document, notes=notes)
