"""NoRA and NoRA+ on PEFT models: Nyström init, its proof, the normalised scaled-GD preconditioner, safe saving.

Each name is imported at its first use: until then neither torch nor PEFT is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nora.adapters.bank import Bank as Bank
    from nora.adapters.bank import NotBankable as NotBankable
    from nora.adapters.export import save_adapter as save_adapter
    from nora.adapters.export import save_diffusers_lora as save_diffusers_lora
    from nora.adapters.fingerprint import Fingerprint as Fingerprint
    from nora.adapters.fingerprint import fingerprint_weights as fingerprint_weights
    from nora.adapters.initialize import Start as Start
    from nora.adapters.initialize import initialize_ as initialize_
    from nora.adapters.layers import AdapterLayer as AdapterLayer
    from nora.adapters.layers import lora_layers as lora_layers
    from nora.adapters.layers import snapshot_weights as snapshot_weights
    from nora.adapters.nystrom import nystrom_gradient_init_ as nystrom_gradient_init_
    from nora.adapters.nystrom import nystrom_init_ as nystrom_init_
    from nora.adapters.optimizer import create_nora_plus_optimizer as create_nora_plus_optimizer
    from nora.adapters.portable import factors_at_start as factors_at_start
    from nora.adapters.preconditioner import Preconditioner as Preconditioner
    from nora.adapters.prefix import prefix_init_ as prefix_init_
    from nora.adapters.prefix import prove_prefix as prove_prefix
    from nora.adapters.proof import InitReport as InitReport
    from nora.adapters.proof import ModuleProof as ModuleProof
    from nora.adapters.proof import prove_init as prove_init
    from nora.adapters.start import start_ as start_
    from nora.adapters.surroundings import evaluating as evaluating

_FILES = {
    "bank": ("Bank", "NotBankable"),
    "export": ("save_adapter", "save_diffusers_lora"),
    "fingerprint": ("Fingerprint", "fingerprint_weights"),
    "initialize": ("Start", "initialize_"),
    "layers": ("AdapterLayer", "lora_layers", "snapshot_weights"),
    "nystrom": ("nystrom_gradient_init_", "nystrom_init_"),
    "optimizer": ("create_nora_plus_optimizer",),
    "portable": ("factors_at_start",),
    "preconditioner": ("Preconditioner",),
    "prefix": ("prefix_init_", "prove_prefix"),
    "proof": ("InitReport", "ModuleProof", "prove_init"),
    "start": ("start_",),
    "surroundings": ("evaluating",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}
__all__ = [*_FILE_OF]


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILE_OF})


if not TYPE_CHECKING:  # by it every name would be one

    def __getattr__(name: str) -> Any:
        if name not in _FILE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
        return found
