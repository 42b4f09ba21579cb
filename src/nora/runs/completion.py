"""Shell completion for verbs, targets and config choices, fixed when the script is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nora.runs.compose import choices

_GROUPS = ("scale", "model", "task", "method", "protocol", "exec", "kind")
_KEYS = (
    "seed=",
    "method.rank=",
    "method.alpha=",
    "method.xi=",
    "method.side=",
    "method.damping=",
    "protocol.lr=",
    "protocol.batch_size=",
    "protocol.epochs=",
    "exec.device=",
    "exec.threads=",
    "exec.processes=",
    "exec.results=",
    "exec.wandb=",
    "search=grid",
    "search=chosen",
)

_BASH = """\
_nora() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{verbs}" -- "$current"))
  else
    COMPREPLY=($(compgen -W "{words}" -- "$current"))
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
  fi
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -F _nora nora
"""

_ZSH = """\
#compdef nora
_nora() {{
  if (( CURRENT == 2 )); then compadd {verbs}; else compadd -S '' -- {words}; fi
}}
compdef _nora nora
"""


def script(shell: str, verbs: Sequence[str], checkout: Path) -> str:
    """The script for ``source <(nora completion bash)`` or zsh's."""
    conf = checkout / "conf"
    words = [*choices(conf, "table"), *_KEYS]
    words += [f"{group}={choice}" for group in _GROUPS for choice in choices(conf, group)]
    return (_BASH if shell == "bash" else _ZSH).format(verbs=" ".join(verbs), words=" ".join(words))
