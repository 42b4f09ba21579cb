"""NoRA and NoRA+ on PEFT models: Nyström init, its proof, the normalised scaled-GD preconditioner, safe saving."""

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
